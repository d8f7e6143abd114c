// SPDX-License-Identifier: Apache-2.0
// Prompt text -> embedding as HunyuanVideo takes it: two tokenizers, cache, Llama and CLIP.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "lacuna/models/context.h"
#include "lacuna/models/text/bpe_tokenizer.h"
#include "lacuna/models/transformer.h"

namespace lacuna {

struct HunyuanEncoderFiles {
  std::vector<std::filesystem::path> llama, clip;  // all shards of each
  std::string llama_config, clip_config;           // texts of config.json; empty = from shapes
  std::filesystem::path llama_tokenizer, clip_tokenizer;  // as BpeTokenizer::from_file takes them
  std::filesystem::path cache;  // folder of finished embeddings; empty = none
};

class HunyuanTextEncoder {
 public:
  // Reads the tokenizers; weights are opened by embed(). Throws Error also for a tokenizer of which
  // the template is not kHunyuanTemplateTokens long.
  explicit HunyuanTextEncoder(HunyuanEncoderFiles files);

  // Rows that embed() gives for this prompt.
  int64_t count_tokens(std::string_view prompt) const;
  // See hunyuan_prompt. The rows of the Llama, 16 GB of weights, are kept in the cache; the weights
  // are closed again before it returns. Throws Error when an encoder is not `sizes.text_dim` or
  // `sizes.pooled_dim` wide.
  PromptEmbedding embed(Context& ctx, std::string_view prompt, const TransformerSizes& sizes) const;

 private:
  std::vector<int32_t> llama_ids(std::string_view prompt) const;

  HunyuanEncoderFiles files_;
  BpeTokenizer llama_tokenizer_, clip_tokenizer_;
};

}  // namespace lacuna
