// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/hunyuan/conditioning.h"

#include <cmath>
#include <cstring>

#include "lacuna/core/bf16.h"
#include "lacuna/core/error.h"
#include "lacuna/models/layers.h"

namespace lacuna {
namespace {

// One row per value.
Tensor sinusoids(std::span<const double> values) {
  constexpr int64_t kChannels = HunyuanConfig::kTimestepChannels;
  Tensor rows(DType::f32, {static_cast<int64_t>(values.size()), kChannels});
  for (size_t i = 0; i < values.size(); ++i)
    timestep_sinusoid(values[i], {rows.as<float>() + i * kChannels, size_t{kChannels}});
  return rows;
}

// In double: the order of the sum should not show.
Tensor mean_row(const TensorView& rows) {
  const int64_t n = rows.shape[0], width = rows.shape[1];
  Tensor mean(DType::f32, {1, width});
  for (int64_t j = 0; j < width; ++j) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(rows.as<float>()[i * width + j]);
    mean.as<float>()[j] = static_cast<float>(sum / static_cast<double>(n));
  }
  return mean;
}

}  // namespace

HunyuanEmbedder::HunyuanEmbedder(WeightReader& reader, const std::string& name, int64_t in,
                                 int64_t out)
    : linear_1_(read_linear(reader, name + ".linear_1", out, in)),
      linear_2_(read_linear(reader, name + ".linear_2", out, out)) {}

Tensor HunyuanEmbedder::forward(Backend& backend, const TensorView& x) const {
  Context ctx{backend};
  const Tensor hidden(DType::f32, {x.shape[0], linear_1_.out_features()});
  Tensor out(DType::f32, {x.shape[0], linear_2_.out_features()});
  linear_1_.forward(ctx, x, hidden, Epilogue::silu);
  linear_2_.forward(ctx, hidden, out);
  return out;
}

HunyuanConditioning::HunyuanConditioning(const HunyuanConfig& config, WeightReader& reader)
    : config_(config),
      time_(reader, "time_text_embed.timestep_embedder", HunyuanConfig::kTimestepChannels,
            config.dim()),
      pooled_(reader, "time_text_embed.text_embedder", config.pooled_dim, config.dim()),
      refiner_time_(reader, "context_embedder.time_text_embed.timestep_embedder",
                    HunyuanConfig::kTimestepChannels, config.dim()),
      refiner_text_(reader, "context_embedder.time_text_embed.text_embedder", config.text_dim,
                    config.dim()),
      text_in_(read_linear(reader, "context_embedder.proj_in", config.dim(), config.text_dim)) {
  if (config.guidance_embeds)
    guidance_.emplace_back(reader, "time_text_embed.guidance_embedder",
                           HunyuanConfig::kTimestepChannels, config.dim());
}

std::vector<HunyuanTime> HunyuanConditioning::times(Backend& backend,
                                                    std::span<const double> timesteps,
                                                    double guidance) const {
  if (timesteps.empty()) return {};
  const int64_t d = config_.dim();
  const Tensor rows = sinusoids(timesteps);
  const Tensor blocks = time_.forward(backend, rows);
  const Tensor refiner = refiner_time_.forward(backend, rows);
  Tensor scale;
  if (!guidance_.empty()) {
    LACUNA_CHECK(guidance >= 0.0 && guidance <= 1000.0,
                 "hunyuanvideo: guidance {}, expected 0..1000", guidance);
    const double input = 1000.0 * guidance;
    scale = guidance_[0].forward(backend, sinusoids({&input, 1}));
  }
  std::vector<HunyuanTime> result(timesteps.size());
  for (size_t i = 0; i < result.size(); ++i) {
    const int64_t first = static_cast<int64_t>(i) * d;
    result[i].blocks = copy_of(make_view(blocks.as<float>() + first, DType::f32, {d}));
    result[i].refiner = copy_of(make_view(refiner.as<float>() + first, DType::f32, {d}));
    if (scale.empty()) continue;
    for (int64_t j = 0; j < d; ++j) result[i].blocks.as<float>()[j] += scale.as<float>()[j];
  }
  return result;
}

HunyuanText HunyuanConditioning::text(Context& ctx, const TensorView& tokens,
                                      const TensorView& pooled) const {
  LACUNA_CHECK(tokens.rank == 2 && tokens.dtype == DType::f32 && tokens.contiguous() &&
                   tokens.shape[1] == config_.text_dim && tokens.shape[0] >= 1 &&
                   tokens.shape[0] <= config_.text_len,
               "hunyuanvideo: text {}, expected [1..{}, {}] f32 contiguous", tokens.describe(),
               config_.text_len, config_.text_dim);
  LACUNA_CHECK(pooled.rank == 1 && pooled.dtype == DType::f32 && pooled.contiguous() &&
                   pooled.shape[0] == config_.pooled_dim,
               "hunyuanvideo: pooled text {}, expected [{}] f32 contiguous", pooled.describe(),
               config_.pooled_dim);
  const int64_t n = tokens.shape[0], d = config_.dim();
  HunyuanText text;
  text.rows = n;
  text.blocks = pooled_.forward(ctx.backend, pooled.reshape({1, config_.pooled_dim}));
  text.refiner = refiner_text_.forward(ctx.backend, mean_row(tokens));
  const Tensor rounded(ctx.compute, {n, config_.text_dim});
  ctx.backend.copy(tokens, rounded);
  text.stream = Tensor(DType::f32, {n, d}, ctx.backend);
  text_in_.forward(ctx, rounded, text.stream);
  return text;
}

void activate_condition(const Tensor& a, const Tensor& b, const TensorView& out) {
  const int64_t d = out.shape[1];
  LACUNA_CHECK(a.numel() == d && b.numel() == d,
               "hunyuanvideo: conditioning of {} and {} channels, expected {}", a.numel(),
               b.numel(), d);
  const float *first = a.as<float>(), *second = b.as<float>();
  for (int64_t j = 0; j < d; ++j) {
    const float sum = first[j] + second[j];
    const float activated = sum / (1.0f + std::exp(-sum));
    if (out.dtype == DType::bf16) {
      out.as<BFloat16>()[j] = BFloat16(activated);
    } else {
      out.as<float>()[j] = activated;
    }
  }
}

}  // namespace lacuna
