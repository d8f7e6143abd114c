// SPDX-License-Identifier: Apache-2.0
// Layers of the Mochi and HunyuanVideo autoencoders on channels-last activations: group norms, and
// causal convolutions whose maps go on at every border as they end there (replicate padding).
//
// count() of a layer is the same walk for the memory plan: `x` is the buffer of the input, the
// result that of the output.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "lacuna/core/tensor.h"
#include "lacuna/models/context.h"
#include "lacuna/models/vae/blocks.h"
#include "lacuna/models/vae/memory_tally.h"
#include "lacuna/models/vae/stream.h"
#include "lacuna/models/weights.h"

namespace lacuna {

// Sizes of a map in a memory plan.
struct MapSize {
  int64_t frames = 1, height = 0, width = 0;

  int64_t elements(int64_t c) const { return frames * height * width * c; }
};

// How a decoder normalises.
struct GroupNormKind {
  int32_t groups = 32;
  float eps = 1e-6f;
  bool per_frame = false;  // else over all frames of the pass, which must be the whole clip
};

struct GroupNorm {
  GroupNormKind kind;
  Tensor weight, bias;

  // x, out [t, h, w, c]; may be in place.
  void forward(Context& ctx, const TensorView& x, bool silu, const TensorView& out) const;
};

// A 3x3x3 convolution that sees two earlier frames. Frames pass through a padded window a few at a
// time: one copy of the map (with all other copies 1 % of Mochi's decode), and no op of its own.
struct ReplicateConv {
  TensorView weight;  // [c_out, c_in, 3, 3, 3]
  Tensor bias;

  int64_t in_channels() const { return weight.shape[1]; }
  int64_t out_channels() const { return weight.shape[0]; }

  // Added to the result: `x` itself or what the pointwise `through` makes of it.
  struct Residual {
    const TensorView* x = nullptr;
    const Conv* through = nullptr;
  };
  // x [t, h, w, c_in] -> out [t, h, w, c_out], which may begin at x's memory unless it is wider.
  void forward(Context& ctx, Stream& stream, const TensorView& x, const Residual& residual,
               const TensorView& out) const;
  void count(MemoryTally& tally, const MapSize& map, const Conv* through = nullptr) const;
};

// conv2(silu(norm2(conv1(silu(norm1(x)))))) + shortcut(x).
struct GroupResBlock {
  GroupNorm norm1, norm2;
  ReplicateConv conv1, conv2;
  std::optional<Conv> shortcut;  // when the channel count changes

  // x's buffer is free afterwards.
  Feature forward(Context& ctx, Stream& stream, const Feature& x) const;
  int count(MemoryTally& tally, const MapSize& map, int x) const;
};

// Single-head attention with residual: every position sees those of its frame and of all earlier
// ones. No mask: a frame's keys are the first rows of all keys.
struct FrameCausalAttention {
  GroupNorm norm;
  Linear q, k, v;  // [c, c]
  Conv proj;

  Feature forward(Context& ctx, Stream& stream, const Feature& x) const;
  int count(MemoryTally& tally, const MapSize& map, int x) const;
};

// Doubles height and width (nearest) and, if temporal, every frame but the first; then a
// convolution as ReplicateConv. For a whole clip in one pass.
//
// Taps that fall on the same cell of the small map are summed at load: one convolution of 2x2 taps
// per parity of row and column (and of frame, of two taps then), which is 4/9 (8/27) of the
// multiplications and no upsampled copy. Replicate padding makes that exact at the border too.
// Equal to the plain form up to summation order.
struct ReplicateUpsample {
  bool temporal = false;
  std::vector<Tensor> phases;  // [c_out, c, 2 or 3, 2, 2] f32, 4 * frame + 2 * row + column parity
  Tensor bias;

  Feature forward(Context& ctx, Stream& stream, const Feature& x) const;
  // `map` becomes the result's.
  int count(MemoryTally& tally, MapSize& map, int x) const;
};

// A linear layer whose outputs are the frames, rows and columns of a cell each position becomes.
struct DepthToSpace {
  int64_t frames = 1, side = 1;  // of a cell
  std::vector<Tensor> weights;   // [c_out, c] f32, index (frame * side + row) * side + column
  std::vector<Tensor> biases;    // [c_out]

  Feature forward(Context& ctx, Stream& stream, const Feature& x) const;
  int count(MemoryTally& tally, MapSize& map, int x) const;
};

// Loaders take the diffusers name without trailing dot.
GroupNorm load_group_norm(WeightReader& reader, const std::string& name, int64_t c,
                          const GroupNormKind& kind);
ReplicateConv load_replicate_conv(WeightReader& reader, const std::string& name, int64_t c_out,
                                  int64_t c_in);
// `norm_layer`: what Mochi calls the norm inside norm1 and norm2, with its dot; else empty.
GroupResBlock load_group_res_block(WeightReader& reader, const std::string& name, int64_t c_in,
                                   int64_t c_out, const GroupNormKind& kind,
                                   const std::string& norm_layer);
FrameCausalAttention load_frame_causal_attention(WeightReader& reader, const std::string& name,
                                                 int64_t c, const GroupNormKind& kind);
ReplicateUpsample load_replicate_upsample(WeightReader& reader, const std::string& name, int64_t c,
                                          bool temporal);
DepthToSpace load_depth_to_space(WeightReader& reader, const std::string& name, int64_t c_out,
                                 int64_t c, int64_t frames, int64_t side);

}  // namespace lacuna
