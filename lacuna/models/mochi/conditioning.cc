// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/mochi/conditioning.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "lacuna/models/layers.h"

namespace lacuna {
namespace {

// The mean of the tokens, then the tokens.
Tensor with_mean(const TensorView& tokens, int64_t count, int64_t dim) {
  Tensor rows = Tensor::zeros(DType::f32, {count + 1, dim});
  if (count == 0) return rows;
  float* mean = rows.as<float>();
  std::memcpy(mean + dim, tokens.as<float>(), static_cast<size_t>(count * dim) * sizeof(float));
  for (int64_t c = 0; c < dim; ++c) {
    double sum = 0.0;
    for (int64_t row = 1; row <= count; ++row) sum += double{mean[row * dim + c]};
    mean[c] = static_cast<float>(sum / static_cast<double>(count));
  }
  return rows;
}

// One head of one query over `count` keys, whose values follow their own key after text_dim
// channels; in double: it is little, and heads are wider than attention kernels take.
void pool_head(const float* q, const float* keys, const float* values, int64_t row_stride,
               int64_t count, int64_t head_dim, float* out) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(head_dim));
  std::vector<double> weight(static_cast<size_t>(count));
  for (int64_t row = 0; row < count; ++row) {
    double dot = 0.0;
    for (int64_t c = 0; c < head_dim; ++c) dot += double{q[c]} * double{keys[row * row_stride + c]};
    weight[row] = scale * dot;
  }
  const double peak = *std::max_element(weight.begin(), weight.end());
  double sum = 0.0;
  for (double& w : weight) sum += w = std::exp(w - peak);
  for (int64_t c = 0; c < head_dim; ++c) {
    double value = 0.0;
    for (int64_t row = 0; row < count; ++row)
      value += weight[row] * double{values[row * row_stride + c]};
    out[c] = static_cast<float>(value / sum);
  }
}

}  // namespace

MochiTimeEmbedder::MochiTimeEmbedder(const MochiConfig& config, WeightReader& reader)
    : dim_(config.dim()),
      freq_dim_(config.freq_dim),
      linear_1_(read_linear(reader, "time_embed.timestep_embedder.linear_1", dim_, freq_dim_)),
      linear_2_(read_linear(reader, "time_embed.timestep_embedder.linear_2", dim_, dim_)) {}

Tensor MochiTimeEmbedder::forward(Backend& backend, std::span<const double> timesteps) const {
  const auto n = static_cast<int64_t>(timesteps.size());
  Tensor embedded(DType::f32, {n, dim_});
  if (n == 0) return embedded;
  Context ctx{backend};
  const Tensor sinusoid(DType::f32, {n, freq_dim_}), hidden(DType::f32, {n, dim_});
  for (int64_t row = 0; row < n; ++row)
    timestep_sinusoid(timesteps[row],
                      {sinusoid.as<float>() + row * freq_dim_, static_cast<size_t>(freq_dim_)});
  linear_1_.forward(ctx, sinusoid, hidden, Epilogue::silu);
  linear_2_.forward(ctx, hidden, embedded);
  return embedded;
}

MochiPooler::MochiPooler(const MochiConfig& config, WeightReader& reader)
    : dim_(config.dim()),
      text_dim_(config.text_dim),
      to_q_(read_linear(reader, "time_embed.pooler.to_q", text_dim_, text_dim_)),
      to_kv_(read_linear(reader, "time_embed.pooler.to_kv", 2 * text_dim_, text_dim_)),
      to_out_(read_linear(reader, "time_embed.pooler.to_out", dim_, text_dim_)) {}

Tensor MochiPooler::forward(Backend& backend, const TensorView& tokens) const {
  Context ctx{backend};
  const int64_t keys = (tokens.empty() ? 0 : tokens.shape[0]) + 1;
  const Tensor rows = with_mean(tokens, keys - 1, text_dim_);
  const Tensor q(DType::f32, {1, text_dim_}), kv(DType::f32, {keys, 2 * text_dim_});
  to_q_.forward(ctx, rows.view().slice(0, 1), q);
  to_kv_.forward(ctx, rows, kv);
  const Tensor pooled(DType::f32, {1, text_dim_});
  const int64_t head_dim = text_dim_ / kMochiPoolHeads;
  for (int64_t head = 0; head < kMochiPoolHeads; ++head) {
    const float* k = kv.as<float>() + head * head_dim;
    pool_head(q.as<float>() + head * head_dim, k, k + text_dim_, 2 * text_dim_, keys, head_dim,
              pooled.as<float>() + head * head_dim);
  }
  Tensor result(DType::f32, {dim_});
  to_out_.forward(ctx, pooled, result.view().reshape({1, dim_}));
  return result;
}

MochiTextEmbedder::MochiTextEmbedder(const MochiConfig& config, WeightReader& reader)
    : text_width_(config.text_width),
      projection_(read_linear(reader, "time_embed.caption_proj", text_width_, config.text_dim)) {}

Tensor MochiTextEmbedder::forward(Backend& backend, const TensorView& tokens) const {
  if (tokens.empty()) return {};
  Context ctx{backend};
  Tensor embedded(DType::f32, {tokens.shape[0], text_width_}, backend);
  projection_.forward(ctx, tokens, embedded);
  return embedded;
}

}  // namespace lacuna
