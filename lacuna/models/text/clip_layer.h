// SPDX-License-Identifier: Apache-2.0
// The transformer layer of both of CLIP's encoders (arXiv 2103.00020), of text and of pictures.
#pragma once

#include <cstdint>
#include <string>

#include "lacuna/core/tensor.h"
#include "lacuna/models/context.h"
#include "lacuna/models/weights.h"

namespace lacuna {

enum class ClipActivation : uint8_t { quick_gelu, gelu };  // x sigmoid(1.702 x), x Phi(x)

struct ClipLayerConfig {
  int64_t dim, num_heads, ffn_dim;
  float eps;
  ClipActivation activation;
};

struct ClipNorm {
  ClipNorm() = default;
  ClipNorm(WeightReader& reader, const std::string& name, int64_t dim);
  // x [n, dim] f32; out [n, dim] f32 or bf16.
  void forward(Context& ctx, const TensorView& x, float eps, const TensorView& out) const;

  Tensor weight, bias;  // [dim] f32
};

class ClipLayer {
 public:
  // Tensors are called `name` + "self_attn.q_proj.weight" and so on. Vectors are read now; matrices
  // stay views into the reader's source.
  ClipLayer(const ClipLayerConfig& config, WeightReader& reader, const std::string& name);

  // x [n, dim] f32, in place. `causal`: causal_bias() of n, or null where every row sees every
  // other.
  void forward(Context& ctx, const TensorView& x, const float* causal) const;

 private:
  void attend(Context& ctx, const TensorView& x, const float* causal) const;
  void feed_forward(Context& ctx, const TensorView& x) const;

  ClipLayerConfig config_;
  ClipNorm attn_norm_;
  Linear q_, k_, v_, o_;
  ClipNorm ffn_norm_;
  Linear up_, down_;
  Tensor ffn_gate_;  // [dim] f32, constant; empty for gelu
};

}  // namespace lacuna
