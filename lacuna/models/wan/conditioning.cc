// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/wan/conditioning.h"

#include <cmath>
#include <cstring>
#include <utility>

#include "lacuna/core/convert.h"
#include "lacuna/core/error.h"
#include "lacuna/models/layers.h"

namespace lacuna {

void show_tap(Context& ctx, const WanTap& tap, std::string_view name, const TensorView& value) {
  const TensorView shown = ctx.workspace.mirror("wan.tap", value);
  ctx.backend.copy(value, shown);
  tap(name, shown);
}

TimeEmbedder::TimeEmbedder(const WanConfig& config, WeightReader& reader)
    : dim_(config.dim()), freq_dim_(config.freq_dim) {
  const std::string base = "condition_embedder.";
  linear_1_ = read_linear(reader, base + "time_embedder.linear_1", dim_, freq_dim_);
  linear_2_ = read_linear(reader, base + "time_embedder.linear_2", dim_, dim_);
  proj_ = read_linear(reader, base + "time_proj", 6 * dim_, dim_);
}

std::vector<TimeEmbedding> TimeEmbedder::prepare(Backend& backend,
                                                 std::span<const double> timesteps,
                                                 const WanTap* tap) const {
  const int64_t n = static_cast<int64_t>(timesteps.size());
  if (n == 0) return {};
  Context ctx{backend};
  Tensor sinusoid(DType::f32, {n, freq_dim_});
  for (int64_t row = 0; row < n; ++row)
    timestep_sinusoid(timesteps[row],
                      {sinusoid.as<float>() + row * freq_dim_, static_cast<size_t>(freq_dim_)});
  Tensor hidden(DType::f32, {n, dim_});
  Tensor temb(DType::f32, {n, dim_});
  Tensor modulation(DType::f32, {n, 6 * dim_});
  linear_1_.forward(ctx, sinusoid, hidden, Epilogue::silu);
  linear_2_.forward(ctx, hidden, temb);
  const float* from = temb.as<float>();
  float* activated = hidden.as<float>();
  for (int64_t i = 0; i < n * dim_; ++i) activated[i] = from[i] / (1.0f + std::exp(-from[i]));
  proj_.forward(ctx, hidden, modulation);
  if (tap != nullptr) {
    (*tap)("condition_embedder.time_embedder", temb);
    (*tap)("condition_embedder.time_proj", modulation);
  }

  std::vector<TimeEmbedding> result(static_cast<size_t>(n));
  const auto copy_row = [](const Tensor& table, int64_t row, int64_t width, const Tensor& to) {
    std::memcpy(to.as<float>(), table.as<float>() + row * width,
                static_cast<size_t>(width) * sizeof(float));
  };
  for (int64_t row = 0; row < n; ++row) {
    TimeEmbedding& time = result[row];
    time.timestep = timesteps[row];
    time.temb = Tensor(DType::f32, {dim_});
    time.modulation = Tensor(DType::f32, {6, dim_});
    copy_row(temb, row, dim_, time.temb);
    copy_row(modulation, row, 6 * dim_, time.modulation);
  }
  return result;
}

TextEmbedder::TextEmbedder(const WanConfig& config, WeightReader& reader)
    : dim_(config.dim()), text_dim_(config.text_dim) {
  const std::string base = "condition_embedder.text_embedder.";
  linear_1_ = read_linear(reader, base + "linear_1", dim_, text_dim_);
  linear_2_ = read_linear(reader, base + "linear_2", dim_, dim_);
}

Tensor TextEmbedder::forward(Context& ctx, const TensorView& context, int64_t text_len,
                             const WanTap* tap) const {
  LACUNA_CHECK(context.rank == 2 && context.dtype == DType::f32 && context.contiguous() &&
                   context.shape[1] == text_dim_,
               "wan: text context {}, expected [rows, {}] f32 contiguous", context.describe(),
               text_dim_);
  const int64_t valid = context.shape[0];
  LACUNA_CHECK(text_len >= 1 && valid <= text_len,
               "wan: {} text rows, expected at most the text length {}", valid, text_len);
  const int64_t rows = valid + (valid < text_len ? 1 : 0);
  const Tensor padded = Tensor::zeros(ctx.compute, {rows, text_dim_});
  if (valid > 0) convert(context, padded.view().slice(0, valid), 1.0f, "wan text context");
  const Tensor hidden(ctx.compute, {rows, dim_}, ctx.backend);
  Tensor result(ctx.compute, {rows, dim_}, ctx.backend);
  linear_1_.forward(ctx, padded, hidden, Epilogue::gelu_tanh);
  linear_2_.forward(ctx, hidden, result);
  if (tap != nullptr) show_tap(ctx, *tap, "condition_embedder.text_embedder", result);
  return result;
}

ImageEmbedder::ImageEmbedder(const WanConfig& config, WeightReader& reader)
    : dim_(config.dim()), image_dim_(config.image_dim) {
  const std::string base = "condition_embedder.image_embedder.";
  if (config.image_positions > 0)
    positions_ = reader.f32(base + "pos_embed", {1, config.image_positions, image_dim_});
  norm_in_weight_ = reader.f32(base + "norm1.weight", {image_dim_});
  norm_in_bias_ = reader.f32(base + "norm1.bias", {image_dim_});
  linear_1_ = read_linear(reader, base + "ff.net.0.proj", image_dim_, image_dim_);
  linear_2_ = read_linear(reader, base + "ff.net.2", dim_, image_dim_);
  norm_out_weight_ = reader.f32(base + "norm2.weight", {dim_});
  norm_out_bias_ = reader.f32(base + "norm2.bias", {dim_});
}

Tensor ImageEmbedder::forward(Context& ctx, const TensorView& rows, const WanTap* tap) const {
  constexpr float kEps = 1e-5f;  // upstream's default for a layer norm, not the network's eps
  LACUNA_CHECK(rows.rank == 2 && rows.dtype == DType::f32 && rows.contiguous() &&
                   rows.numel() > 0 && rows.shape[1] == image_dim_,
               "wan: image rows {}, expected [rows, {}] f32 contiguous", rows.describe(),
               image_dim_);
  const int64_t n = rows.shape[0];
  LACUNA_CHECK(positions_.empty() || positions_.view().shape[1] == n,
               "wan: {} image rows, expected {}: those of a first and a last picture", n,
               positions_.view().shape[1]);
  const Tensor x = copy_of(rows);
  if (!positions_.empty())
    for (int64_t i = 0; i < n * image_dim_; ++i) x.as<float>()[i] += positions_.as<float>()[i];
  Context own{ctx.backend};
  const Tensor hidden(DType::f32, {n, image_dim_}), wide(DType::f32, {n, dim_});
  ctx.backend.layer_norm(x, norm_in_weight_.as<float>(), norm_in_bias_.as<float>(), nullptr,
                         nullptr, kEps, x);
  forward_gelu(own, linear_1_, x, hidden);
  linear_2_.forward(own, hidden, wide);
  Tensor result(ctx.compute, {n, dim_}, ctx.backend);
  ctx.backend.layer_norm(wide, norm_out_weight_.as<float>(), norm_out_bias_.as<float>(), nullptr,
                         nullptr, kEps, result);
  if (tap != nullptr) show_tap(ctx, *tap, "condition_embedder.image_embedder", result);
  return result;
}

}  // namespace lacuna
