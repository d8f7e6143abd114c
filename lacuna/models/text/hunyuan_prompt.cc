// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/text/hunyuan_prompt.h"

#include <algorithm>
#include <vector>

#include "lacuna/core/error.h"

namespace lacuna {
namespace {

// Published with the model (HunyuanVideo, "PROMPT_TEMPLATE_ENCODE_VIDEO"): its words decide what
// the hidden states mean. No spaces between the items, as there.
constexpr std::string_view kBeforePrompt =
    "<|start_header_id|>system<|end_header_id|>\n\n"
    "Describe the video by detailing the following aspects: "
    "1. The main content and theme of the video."
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the "
    "objects."
    "4. background environment, light, style and atmosphere."
    "5. camera angles, movements, and transitions used in the video:<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n";
constexpr std::string_view kAfterPrompt = "<|eot_id|>";

}  // namespace

std::string hunyuan_llama_text(std::string_view prompt) {
  std::string text(kBeforePrompt);
  text += prompt;
  text += kAfterPrompt;
  return text;
}

PromptEmbedding hunyuan_prompt(Context& ctx, const LlamaTextEncoder& llama,
                               const ClipTextEncoder& clip, std::span<const int32_t> llama_ids,
                               std::span<const int32_t> clip_ids) {
  LACUNA_CHECK(llama.skipped_layers() == kHunyuanSkippedLayers,
               "hunyuan prompt: a Llama without its last {} layers, expected without {}",
               llama.skipped_layers(), kHunyuanSkippedLayers);
  LACUNA_CHECK(llama_ids.size() > static_cast<size_t>(kHunyuanTemplateTokens),
               "hunyuan prompt: {} tokens for the Llama, expected more than the template's {}",
               llama_ids.size(), kHunyuanTemplateTokens);
  constexpr auto kMost = static_cast<size_t>(kHunyuanTemplateTokens + kHunyuanTextTokens);
  PromptEmbedding out;
  out.tokens =
      llama.encode(ctx, llama_ids.first(std::min(llama_ids.size(), kMost)), kHunyuanTemplateTokens);

  std::vector<int32_t> pooled_ids(clip_ids.begin(), clip_ids.end());
  const auto clip_most = static_cast<size_t>(clip.config().max_tokens);
  if (pooled_ids.size() > clip_most) {
    pooled_ids[clip_most - 1] = pooled_ids.back();
    pooled_ids.resize(clip_most);
  }
  out.pooled = clip.encode(ctx, pooled_ids);
  return out;
}

}  // namespace lacuna
