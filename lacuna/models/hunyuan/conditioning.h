// SPDX-License-Identifier: Apache-2.0
// What the blocks need to know about timestep, guidance and prompt, as far as it does not depend on
// two of them at once.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "lacuna/core/tensor.h"
#include "lacuna/models/context.h"
#include "lacuna/models/hunyuan/hunyuan_config.h"
#include "lacuna/models/weights.h"

namespace lacuna {

// linear_2(silu(linear_1(x))), always in f32.
class HunyuanEmbedder {
 public:
  HunyuanEmbedder(WeightReader& reader, const std::string& name, int64_t in, int64_t out);
  // x [n, in] f32 -> [n, out] f32, both on the host. Scratch (widened weights included) lives only
  // during the call.
  Tensor forward(Backend& backend, const TensorView& x) const;

 private:
  Linear linear_1_, linear_2_;
};

// One timestep, f32, on the host.
struct HunyuanTime {
  Tensor blocks;   // [d]: time, and guidance where the network is told it
  Tensor refiner;  // [d]
};

// One prompt.
struct HunyuanText {
  int64_t rows = 0;
  Tensor stream;   // [rows, d] f32, in backend memory: what enters the refiner
  Tensor blocks;   // [d] f32, on the host: of the pooled embedding
  Tensor refiner;  // [d] f32, on the host: of the mean row
};

// The embedders of everything that modulates blocks, and the first linear of the text.
class HunyuanConditioning {
 public:
  HunyuanConditioning(const HunyuanConfig& config, WeightReader& reader);
  // guidance as users write it (6): the network takes 1000 times that. Not read without
  // guidance_embeds.
  std::vector<HunyuanTime> times(Backend& backend, std::span<const double> timesteps,
                                 double guidance) const;
  // tokens [1 to text_len, text_dim], pooled [pooled_dim], f32 contiguous, on the host.
  HunyuanText text(Context& ctx, const TensorView& tokens, const TensorView& pooled) const;

 private:
  HunyuanConfig config_;
  HunyuanEmbedder time_, pooled_;
  std::vector<HunyuanEmbedder> guidance_;  // one or none
  HunyuanEmbedder refiner_time_, refiner_text_;
  Linear text_in_;
};

// silu(a + b) of [d] f32 tensors into `out` [1, d] f32 or bf16 on the host: what the linears of
// modulations take.
void activate_condition(const Tensor& a, const Tensor& b, const TensorView& out);

}  // namespace lacuna
