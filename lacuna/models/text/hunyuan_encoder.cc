// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/text/hunyuan_encoder.h"

#include <fmt/format.h>

#include <utility>

#include "lacuna/core/error.h"
#include "lacuna/core/rng.h"
#include "lacuna/models/text/clip_text.h"
#include "lacuna/models/text/hunyuan_prompt.h"
#include "lacuna/models/text/llama_text.h"
#include "lacuna/models/text/prompt_cache.h"
#include "lacuna/models/weights.h"

namespace lacuna {
namespace {

constexpr int64_t kMostTokens = kHunyuanTemplateTokens + kHunyuanTextTokens;
constexpr std::string_view kLlama = "text encoder config", kClip = "pooled text encoder config";

void check_width(std::string_view who, int64_t width, int64_t expected) {
  LACUNA_CHECK(width == expected,
               "{}: {} wide, the video transformer expects {}; they do not belong together", who,
               width, expected);
}

}  // namespace

HunyuanTextEncoder::HunyuanTextEncoder(HunyuanEncoderFiles files)
    : files_(std::move(files)),
      llama_tokenizer_(BpeTokenizer::from_file(files_.llama_tokenizer)),
      clip_tokenizer_(BpeTokenizer::from_file(files_.clip_tokenizer)) {
  LACUNA_CHECK(!files_.llama.empty() && !files_.clip.empty(),
               "text encoders: {} and {} weight files, expected at least one of each",
               files_.llama.size(), files_.clip.size());
  // Of another tokenizer the cut behind the template would leave some of it, or take some of the
  // prompt, and nothing would look wrong.
  const auto bare = static_cast<int64_t>(
      llama_tokenizer_.encode_with_special(hunyuan_llama_text(""), kMostTokens).size());
  LACUNA_CHECK(bare == kHunyuanTemplateTokens + 1,
               "text encoder: {} makes {} tokens of the template and its end, expected {}; "
               "another tokenizer than HunyuanVideo's Llama has?",
               files_.llama_tokenizer.string(), bare, kHunyuanTemplateTokens + 1);
}

std::vector<int32_t> HunyuanTextEncoder::llama_ids(std::string_view prompt) const {
  std::vector<int32_t> ids =
      llama_tokenizer_.encode_with_special(hunyuan_llama_text(prompt), kMostTokens);
  LACUNA_CHECK(
      static_cast<int64_t>(ids.size()) > kHunyuanTemplateTokens,
      "text encoder: {} makes {} tokens of the prompt and its template, expected more than "
      "the {} of the template: another tokenizer?",
      files_.llama_tokenizer.string(), ids.size(), kHunyuanTemplateTokens);
  return ids;
}

int64_t HunyuanTextEncoder::count_tokens(std::string_view prompt) const {
  return static_cast<int64_t>(llama_ids(prompt).size()) - kHunyuanTemplateTokens;
}

PromptEmbedding HunyuanTextEncoder::embed(Context& ctx, std::string_view prompt,
                                          const TransformerSizes& sizes) const {
  const auto clip_source = open_weights(files_.clip);
  const ClipTextConfig clip_config =
      files_.clip_config.empty()
          ? infer_clip_text_config(*clip_source, detect_clip_text_prefix(*clip_source))
          : clip_text_config_from_json(files_.clip_config, kClip);
  check_width(kClip, clip_config.dim, sizes.pooled_dim);
  const ClipTextEncoder clip(clip_config, *clip_source, detect_clip_text_prefix(*clip_source));
  const ConstantWeights clip_constant(ctx.backend, clip.weights());
  const std::vector<int32_t> ids = llama_ids(prompt);
  const std::vector<int32_t> clip_ids =
      clip_tokenizer_.encode_with_special(prompt, clip_config.max_tokens);

  constexpr auto kTemplate = static_cast<size_t>(kHunyuanTemplateTokens);
  const auto own_ids = std::span(ids).subspan(kTemplate);
  std::string identity;
  if (!files_.cache.empty()) {
    // Every row has seen the template, whose ids are the tokenizer's.
    const auto seen = std::as_bytes(std::span(ids).first(kTemplate));
    identity = fmt::format(
        "{} {:016x}",
        encoder_identity(files_.llama, files_.llama_config, ctx.compute, ctx.backend.rounding()),
        fnv1a64({reinterpret_cast<const char*>(seen.data()), seen.size()}));
  }
  const PromptCache cache(files_.cache, identity);
  if (auto found = cache.find(own_ids, sizes.text_dim))
    return {*std::move(found), clip.encode(ctx, clip_ids)};

  const auto source = open_weights(files_.llama);
  const LlamaNames names = detect_llama_names(*source);
  const LlamaConfig config = files_.llama_config.empty()
                                 ? infer_llama_config(*source, names)
                                 : llama_config_from_json(files_.llama_config, kLlama);
  check_width(kLlama, config.dim, sizes.text_dim);
  const LlamaTextEncoder llama(config, *source, names, kHunyuanSkippedLayers);
  const ConstantWeights constant(ctx.backend, llama.weights());
  PromptEmbedding embedding = hunyuan_prompt(ctx, llama, clip, ids, clip_ids);
  cache.store(own_ids, embedding.tokens);
  return embedding;
}

}  // namespace lacuna
