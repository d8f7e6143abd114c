// SPDX-License-Identifier: Apache-2.0
// Prompt text -> embedding: cleaning, tokenizer, cache, UMT5.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lacuna/models/context.h"
#include "lacuna/models/text/tokenizer.h"
#include "lacuna/models/text/umt5.h"
#include "lacuna/models/weights.h"

namespace lacuna {

struct TextEncoderFiles {
  std::vector<std::filesystem::path> weights;  // all shards, or one GGUF
  std::string config_json;                     // text of config.json; empty = from tensor shapes
  std::filesystem::path tokenizer;             // as Tokenizer::from_file takes it
  std::filesystem::path cache;                 // folder of finished embeddings; empty = none
  std::optional<bool> byte_fallback;           // see Tokenizer
  bool clean = true;                           // clean_prompt() first, as Wan's pipelines do
};

class TextEncoder {
 public:
  // Reads the tokenizer; weights are opened when a prompt is not in the cache. Throws Error.
  explicit TextEncoder(TextEncoderFiles files);

  // Embedding of the prompt, [valid tokens, dim] f32, at most max_len tokens; `dim` is what the
  // video transformer expects. The weights are closed again before it returns: they are needed
  // once per prompt and are the largest part of a model. Throws Error when the encoder has another
  // width, or see Umt5Encoder.
  Tensor embed(Context& ctx, std::string_view prompt, int64_t dim, int64_t max_len = 512) const;

  // Ids of the prompt, its end included, at most max_len: a row of the embedding each.
  std::vector<int32_t> tokens(std::string_view prompt, int64_t max_len) const;
  const Tokenizer& tokenizer() const { return tokenizer_; }

 private:
  TextEncoderFiles files_;
  Tokenizer tokenizer_;
};

}  // namespace lacuna
