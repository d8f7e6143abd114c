// SPDX-License-Identifier: Apache-2.0
// Layers of the Wan VAEs on channels-last activations.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "lacuna/core/tensor.h"
#include "lacuna/models/context.h"
#include "lacuna/models/vae/pixels.h"
#include "lacuna/models/vae/stream.h"
#include "lacuna/models/weights.h"

namespace lacuna {

// A convolution without memory: weight [c_out, c_in, kt, kh, kw] as stored, bias [c_out] f32.
struct Conv {
  TensorView weight;
  Tensor bias;
  ConvParams params;

  int64_t in_channels() const { return weight.shape[1]; }
  int64_t out_channels() const { return weight.shape[0]; }
  void forward(Context& ctx, const TensorView& x, const TensorView* residual,
               const TensorView& out) const;
};

// A convolution over time that sees `history` earlier frames, zeros before the first one.
struct CausalConv {
  Conv conv;
  int64_t history = 2;

  // Input memory [history + t, h, w, c_in] with the history filled in; the caller writes the t new
  // frames behind it (`fresh`). Valid until the next window() of the stream.
  TensorView window(Stream& stream, int64_t t, int64_t h, int64_t w) const;
  TensorView fresh(const TensorView& window) const {
    return window.slice(history, window.shape[0]);
  }
  // Keeps the window's last frames for the next pass.
  void remember(Stream& stream, const TensorView& window) const;
  void forward(Context& ctx, Stream& stream, const TensorView& window, const TensorView* residual,
               const TensorView& out) const;
};

// conv2(silu(norm2(conv1(silu(norm1(x)))))) + shortcut(x).
struct ResBlock {
  Tensor gamma1, gamma2;
  CausalConv conv1, conv2;
  std::optional<Conv> shortcut;  // when the channel count changes

  // The result is not in the buffer `pinned` (-1: none); x's own buffer may be reused.
  Feature forward(Context& ctx, Stream& stream, const Feature& x, int pinned = -1) const;
};

// Single-head attention over the positions of each frame, with residual.
struct MidAttention {
  Tensor gamma;
  Linear qkv;  // [3c, c]
  Conv proj;

  Feature forward(Context& ctx, Stream& stream, const Feature& x) const;
};

struct MidBlock {
  ResBlock before, after;
  MidAttention attention;

  Feature forward(Context& ctx, Stream& stream, const Feature& x) const;
};

// Doubles height and width (nearest, then 3x3 convolution) and, if temporal, time before that.
//
// The convolution on the upsampled map is computed as four 2x2 convolutions on the small map, one
// per output parity, with the taps that fall on the same cell summed at load: 4/9 of the
// multiplications and no upsampled copy. Equal to the plain form up to summation order.
struct Upsample {
  std::optional<CausalConv> time;  // [2c, c, 3, 1, 1]
  std::array<Tensor, 4> phases;    // [c_out, c, 1, 2, 2] f32, index 2 * row parity + column parity
  Tensor bias;
  std::array<DupChannels, 4> dup_channels;  // Wan 2.2 shortcut, per phase

  // `block_input` is what the shortcut reads; null without shortcut. Only `region` of the doubled
  // map is kept; null keeps all.
  Feature forward(Context& ctx, Stream& stream, const Feature& x, const Feature* block_input,
                  const Region* region) const;

 private:
  Feature double_time(Context& ctx, Stream& stream, const Feature& x, int pinned) const;
};

// Halves height and width (3x3 convolution of stride 2, padded right and below) and, if temporal,
// time after that; frame 0 of the video passes time untouched.
struct Downsample {
  Conv conv;
  std::optional<CausalConv> time;  // [c, c, 3, 1, 1], stride 2, one frame of history

  Feature forward(Context& ctx, Stream& stream, const Feature& x, int pinned = -1) const;
};

// Loaders take the diffusers name without trailing dot.
Conv load_conv(WeightReader& reader, const std::string& name, int64_t c_out, int64_t c_in,
               int64_t kt, int64_t k);
CausalConv load_causal_conv(WeightReader& reader, const std::string& name, int64_t c_out,
                            int64_t c_in, int64_t kt, int64_t k);
Tensor load_gamma(WeightReader& reader, const std::string& name, int64_t c);
ResBlock load_res_block(WeightReader& reader, const std::string& name, int64_t c_in, int64_t c_out);
MidBlock load_mid_block(WeightReader& reader, const std::string& name, int64_t c);
// dup_in: channels of the block input when there is a shortcut, else 0.
Upsample load_upsample(WeightReader& reader, const std::string& name, int64_t c, int64_t c_out,
                       bool temporal, int64_t dup_in);
Downsample load_downsample(WeightReader& reader, const std::string& name, int64_t c, bool temporal);

// Sums of the 3x3 taps of weight [c_out, c_in, 3, 3] f32 that read the same cell of a map before
// its sides are doubled, for rows and columns of one parity each: [c_out, c_in, 1, 2, 2] f32.
Tensor phase_weight(const Tensor& weight, int row_parity, int column_parity);
// The padding with which these make a map of its own size.
ConvParams phase_padding(int row_parity, int column_parity);

// Dense attention of one head: q, out [n, c], k, v [m, c]; rows may be strided.
void attend_one_head(Context& ctx, const TensorView& q, const TensorView& k, const TensorView& v,
                     const TensorView& out);

// silu(norm(x)) into out, which may be a convolution's window.
void norm_silu(Context& ctx, const TensorView& x, const Tensor& gamma, const TensorView& out);

}  // namespace lacuna
