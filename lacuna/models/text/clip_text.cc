// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/text/clip_text.h"

#include <fmt/format.h>

#include <algorithm>

#include "lacuna/core/error.h"
#include "lacuna/models/text/encoder_parts.h"

namespace lacuna {
namespace {

constexpr int64_t kHighestId = 2;  // ClipTextConfig::end_token

}  // namespace

ClipTextEncoder::ClipTextEncoder(const ClipTextConfig& config, WeightSource& source,
                                 const std::string& prefix)
    : config_(config) {
  config_.validate();
  WeightReader reader(source,
                      [&prefix](std::string_view name) { return prefix + std::string(name); });
  const int64_t d = config_.dim;
  // Read by the host alone, a row here and there.
  token_embedding_ = reader.unscaled(kClipTokenEmbedding, {config_.vocab_size, d});
  position_embedding_ =
      reader.passing_f32("embeddings.position_embedding.weight", {config_.max_tokens, d});
  const ClipLayerConfig layer{d, config_.num_heads, config_.ffn_dim, config_.eps,
                              ClipActivation::quick_gelu};
  for (int64_t i = 0; i < config_.num_layers; ++i)
    layers_.emplace_back(layer, reader, fmt::format("encoder.layers.{}.", i));
  final_norm_ = ClipNorm(reader, "final_layer_norm", d);
  reader.finish("clip");
  weights_.assign(reader.kept().begin() + 1, reader.kept().end());  // without the embedding
}

int64_t ClipTextEncoder::end_of(std::span<const int32_t> ids) const {
  const auto found = config_.end_token == kHighestId
                         ? std::ranges::max_element(ids)
                         : std::ranges::find(ids, static_cast<int32_t>(config_.end_token));
  LACUNA_CHECK(found != ids.end(),
               "clip: no end token {} among {} tokens, expected one (tokenizer of another model?)",
               config_.end_token, ids.size());
  return found - ids.begin();
}

Tensor ClipTextEncoder::encode(Context& ctx, std::span<const int32_t> ids) const {
  check_token_ids("clip", ids, config_.max_tokens, config_.vocab_size);
  const int64_t n = end_of(ids) + 1;
  const Tensor x = embed_tokens(ctx, token_embedding_, ids.first(static_cast<size_t>(n)));
  ctx.backend.add(x, position_embedding_.view().slice(0, n), x);
  const float* causal = causal_bias(ctx, n);
  for (const ClipLayer& layer : layers_) {
    ctx.check_cancel();
    layer.forward(ctx, x, causal);
  }
  Tensor pooled(DType::f32, {config_.dim});
  final_norm_.forward(ctx, x.view().slice(n - 1, n), config_.eps,
                      pooled.view().reshape({1, config_.dim}));
  return pooled;
}

}  // namespace lacuna
