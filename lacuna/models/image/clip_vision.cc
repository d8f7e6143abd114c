// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/image/clip_vision.h"

#include <fmt/format.h>

#include "lacuna/core/error.h"
#include "lacuna/models/patch.h"

namespace lacuna {
namespace {

constexpr int64_t kColours = 3;

}  // namespace

ClipVisionEncoder::ClipVisionEncoder(const ClipVisionConfig& config, WeightSource& source,
                                     const std::string& prefix)
    : config_(config) {
  config_.validate();
  WeightReader reader(source,
                      [&prefix](std::string_view name) { return prefix + std::string(name); });
  const int64_t d = config_.dim, p = config_.patch_size;
  class_embedding_ = reader.f32(kClipClassEmbedding, {d});
  patch_embedding_ = reader.f32("embeddings.patch_embedding.weight", {d, kColours, p, p});
  position_embedding_ = reader.f32("embeddings.position_embedding.weight", {config_.rows(), d});
  first_norm_ = ClipNorm(reader, "pre_layrnorm", d);  // as its authors spell it
  const ClipLayerConfig layer{d, config_.num_heads, config_.ffn_dim, config_.eps,
                              config_.activation};
  for (int64_t i = 0; i + 1 < config_.num_layers; ++i)
    layers_.emplace_back(layer, reader, fmt::format("encoder.layers.{}.", i));
  reader.finish("clip vision");
  weights_ = reader.kept();
}

Tensor ClipVisionEncoder::encode(Context& ctx, const TensorView& pixels) const {
  const int64_t size = config_.image_size, p = config_.patch_size, d = config_.dim;
  const int64_t n = config_.rows(), inputs = kColours * p * p;
  LACUNA_CHECK(
      pixels.rank == 3 && pixels.dtype == DType::f32 && pixels.contiguous() &&
          pixels.shape[0] == kColours && pixels.shape[1] == size && pixels.shape[2] == size,
      "clip vision: pixels {}, expected [3, {}, {}] f32 contiguous", pixels.describe(), size, size);
  const TensorView patches =
      ctx.workspace.host("clip.patches", DType::f32, {config_.patches(), inputs});
  patchify(pixels.reshape({kColours, 1, size, size}), {1, p, p}, patches);

  // Patches and positions stay f32: what they lose all layers lose.
  const TensorView embedded = ctx.workspace.get("clip.embedded", DType::f32, {n, d});
  ctx.backend.copy(class_embedding_.view().reshape({1, d}), embedded.slice(0, 1));
  ctx.backend.linear(patches, patch_embedding_.view().reshape({d, inputs}), nullptr, Epilogue::none,
                     nullptr, embedded.slice(1, n));
  ctx.backend.add(embedded, position_embedding_, embedded);
  const TensorView x = ctx.workspace.get("clip.x", DType::f32, {n, d});
  first_norm_.forward(ctx, embedded, config_.eps, x);
  for (const ClipLayer& layer : layers_) {
    ctx.check_cancel();
    layer.forward(ctx, x, nullptr);
  }
  Tensor hidden(DType::f32, {n, d});
  ctx.backend.copy(x, hidden);
  return hidden;
}

int64_t clip_vision_bytes(const ClipVisionConfig& c, DType compute) {
  const int64_t n = c.rows(), inputs = kColours * c.patch_size * c.patch_size;
  const int64_t scratch = storage_bytes(compute, n * (5 * c.dim + c.ffn_dim));
  // A second feed-forward buffer where the activation is computed in f32 and kept in bf16.
  const int64_t gelu = compute == DType::f32 ? 0 : storage_bytes(DType::f32, n * c.ffn_dim);
  return scratch + gelu +
         storage_bytes(DType::f32, 3 * n * c.dim + c.patches() * inputs + c.dim * c.ffn_dim);
}

}  // namespace lacuna
