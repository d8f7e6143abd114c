// SPDX-License-Identifier: Apache-2.0
// What the blocks need to know about the timestep and the prompt. Neither depends on the latent, so
// both are computed once: per schedule and per prompt.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "lacuna/core/tensor.h"
#include "lacuna/models/context.h"
#include "lacuna/models/wan/wan_config.h"
#include "lacuna/models/weights.h"

namespace lacuna {

// Receives intermediate values, on the host, by their diffusers module name. For tests: with a tap
// the forward computes some values a second time beside the fused path, its result stays the same.
using WanTap = std::function<void(std::string_view name, const TensorView& value)>;

void show_tap(Context& ctx, const WanTap& tap, std::string_view name, const TensorView& value);

// One timestep, all f32, on the host.
struct TimeEmbedding {
  double timestep = 0.0;
  Tensor temb;        // [d], for the head
  Tensor modulation;  // [6, d], for the blocks, before scale_shift_table is added
};

// One prompt: cross-attention keys (after their norm) and values of every layer, in the compute
// dtype, in backend memory. Identical padding rows are one key whose logit is raised by ln(count).
struct PreparedText {
  int64_t keys = 0;       // valid rows, plus one when there is padding
  Tensor bias;            // [keys] f32, or empty without padding
  std::vector<Tensor> k;  // per layer [keys, num_heads, head_dim]
  std::vector<Tensor> v;
  // Of the pictures' rows, which have a softmax of their own; none without an image encoder.
  int64_t image_keys = 0;
  std::vector<Tensor> image_k, image_v;
};

// Sinusoid and MLP of the timestep, always in f32.
class TimeEmbedder {
 public:
  TimeEmbedder(const WanConfig& config, WeightReader& reader);
  // Scratch (widened weights included) lives only during the call.
  std::vector<TimeEmbedding> prepare(Backend& backend, std::span<const double> timesteps,
                                     const WanTap* tap) const;

 private:
  int64_t dim_, freq_dim_;
  Linear linear_1_, linear_2_, proj_;
};

// The MLP between text encoder and cross-attention.
class TextEmbedder {
 public:
  TextEmbedder(const WanConfig& config, WeightReader& reader);
  // context [n, text_dim] f32, n <= text_len -> [n + (n < text_len), d] in ctx.compute; the last
  // row stands for all padding rows, which are zero before the MLP and one constant after it. The
  // result lies in backend memory.
  Tensor forward(Context& ctx, const TensorView& context, int64_t text_len,
                 const WanTap* tap) const;

 private:
  int64_t dim_, text_dim_;
  Linear linear_1_, linear_2_;
};

// Layer norms around the MLP between image encoder and cross-attention, always in f32: it runs once
// a prompt.
class ImageEmbedder {
 public:
  ImageEmbedder(const WanConfig& config, WeightReader& reader);
  // rows [n, image_dim] f32, n = image_positions if there are any -> [n, d] in ctx.compute, in
  // backend memory. Scratch lives only during the call.
  Tensor forward(Context& ctx, const TensorView& rows, const WanTap* tap) const;

 private:
  int64_t dim_, image_dim_;
  Tensor positions_;  // [1, image_positions, image_dim], or empty
  Tensor norm_in_weight_, norm_in_bias_, norm_out_weight_, norm_out_bias_;
  Linear linear_1_, linear_2_;
};

}  // namespace lacuna
