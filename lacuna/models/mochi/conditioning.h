// SPDX-License-Identifier: Apache-2.0
// What the blocks of Mochi need to know about the timestep and the prompt. The two are added up to
// one vector; neither depends on the latent, so both are computed once: per schedule, per prompt.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "lacuna/core/tensor.h"
#include "lacuna/models/context.h"
#include "lacuna/models/mochi/mochi_config.h"
#include "lacuna/models/transformer.h"
#include "lacuna/models/weights.h"

namespace lacuna {

// Sinusoid and MLP of the timestep, always in f32.
class MochiTimeEmbedder {
 public:
  MochiTimeEmbedder(const MochiConfig& config, WeightReader& reader);
  // [timesteps, d] f32, on the host. Scratch (widened weights included) lives only during the call.
  Tensor forward(Backend& backend, std::span<const double> timesteps) const;

 private:
  int64_t dim_, freq_dim_;
  Linear linear_1_, linear_2_;
};

// One vector of a prompt: attention from the mean of its tokens to that mean and all tokens.
class MochiPooler {
 public:
  MochiPooler(const MochiConfig& config, WeightReader& reader);
  // tokens [n, text_dim] f32 contiguous, on the host, n >= 0 (no token: their mean is 0) ->
  // [d] f32, on the host; scratch as above.
  Tensor forward(Backend& backend, const TensorView& tokens) const;

 private:
  int64_t dim_, text_dim_;
  Linear to_q_, to_kv_, to_out_;
};

// The prompt as the first layer sees it.
class MochiTextEmbedder {
 public:
  MochiTextEmbedder(const MochiConfig& config, WeightReader& reader);
  // tokens as above -> [n, text_width] f32, in backend memory; empty without tokens.
  Tensor forward(Backend& backend, const TensorView& tokens) const;

 private:
  int64_t text_width_;
  Linear projection_;
};

}  // namespace lacuna
