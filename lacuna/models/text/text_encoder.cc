// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/text/text_encoder.h"

#include <utility>

#include "lacuna/core/error.h"
#include "lacuna/models/text/prompt.h"
#include "lacuna/models/text/prompt_cache.h"

namespace lacuna {

TextEncoder::TextEncoder(TextEncoderFiles files)
    : files_(std::move(files)),
      tokenizer_(Tokenizer::from_file(files_.tokenizer, files_.byte_fallback)) {
  LACUNA_CHECK(!files_.weights.empty(), "text encoder: no weight files, expected at least one");
}

std::vector<int32_t> TextEncoder::tokens(std::string_view prompt, int64_t max_len) const {
  if (!files_.clean) return tokenizer_.encode(prompt, max_len);
  return tokenizer_.encode(clean_prompt(prompt), max_len);
}

Tensor TextEncoder::embed(Context& ctx, std::string_view prompt, int64_t dim,
                          int64_t max_len) const {
  const std::vector<int32_t> ids = tokens(prompt, max_len);
  std::string identity;
  if (!files_.cache.empty()) {
    identity =
        encoder_identity(files_.weights, files_.config_json, ctx.compute, ctx.backend.rounding());
  }
  const PromptCache cache(files_.cache, identity);
  if (auto found = cache.find(ids, dim)) return *std::move(found);

  const auto source = open_weights(files_.weights);
  const Umt5Names names = detect_umt5_names(*source);
  const Umt5Config config = files_.config_json.empty()
                                ? infer_umt5_config(*source, names)
                                : umt5_config_from_json(files_.config_json, "text encoder config");
  LACUNA_CHECK(config.dim == dim,
               "text encoder: {} wide, the video transformer expects {}; they do not belong "
               "together",
               config.dim, dim);
  const Umt5Encoder encoder(config, *source, names);
  const ConstantWeights constant(ctx.backend, encoder.weights());
  Tensor embedding = encoder.encode(ctx, ids);
  cache.store(ids, embedding);
  return embedding;
}

}  // namespace lacuna
