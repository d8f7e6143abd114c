// SPDX-License-Identifier: Apache-2.0
// One transformer block of Mochi: two streams, video and text, that meet in attention.
#pragma once

#include <cstdint>
#include <string>

#include "lacuna/core/site.h"
#include "lacuna/core/video_grid.h"
#include "lacuna/engine/engine.h"
#include "lacuna/models/context.h"
#include "lacuna/models/mochi/mochi_config.h"
#include "lacuna/models/weights.h"

namespace lacuna {

// The rows of one stream in the scratch of a forward; they may be strided, as the text takes the
// first channels of its rows.
struct MochiStream {
  TensorView residual;    // [rows, width] f32
  TensorView normed;      // [rows, width] compute: input of the linears
  TensorView attended;    // [rows, d] compute: output of attention, in the memory of `normed`
  TensorView q, k, v;     // [rows, d] compute
  TensorView modulation;  // [4, width] f32, on the host
  int64_t rows() const { return residual.shape[0]; }
};

// Scratch of one forward, views into Context::workspace. See mochi_activation_bytes().
struct MochiActivations {
  MochiStream video, text;
  TensorView q, k, v, attended;  // [video and text rows, d] compute
  TensorView patches;            // [N * max(patch inputs, patch outputs)] f32
  TensorView product, branch;    // raw bytes of the rows that are worked on at one time
  TensorView condition;          // [1, d] f32, on the host: SiLU of time and prompt
  // residual [video_tokens + text_len, d] f32.
  static MochiActivations take(Context& ctx, const MochiConfig& config, int64_t video_tokens,
                               int64_t text_tokens, const TensorView& residual);
};

// Everything that is the same for all blocks of one forward.
struct MochiPass {
  Context& ctx;
  Engine& engine;
  const MochiConfig& config;
  Site site;  // layer is set per block
  VideoGrid grid;
  RopeTables rope;
  MochiActivations act;
};

// What one block does to one stream, before and behind attention.
class MochiStreamBlock {
 public:
  // As diffusers names them.
  struct Names {
    std::string modulation, q, k, v, norm_q, norm_k, out, ffn;
  };
  // ffn_dim 0: nothing reads the stream behind this block, so it only enters attention.
  MochiStreamBlock(const MochiConfig& config, const Names& names, int64_t width, int64_t ffn_dim,
                   WeightReader& reader);

  // stream.residual -> q, k and v; rope null = positions do not count.
  void enter(MochiPass& pass, const MochiStream& stream, const RopeTables* rope) const;
  // stream.attended -> stream.residual, then the feed-forward.
  void leave(MochiPass& pass, const MochiStream& stream) const;
  bool leaves() const { return ffn_dim_ > 0; }

 private:
  void modulate(MochiPass& pass, const MochiStream& stream) const;
  void feed_forward(MochiPass& pass, const MochiStream& stream) const;
  // stream.normed = RMS(stream.residual) * row of the modulation.
  void norm(MochiPass& pass, const MochiStream& stream, int64_t row) const;
  // residual += RMS(branch) * row of the modulation, for the rows from `begin` on.
  void add_gated(MochiPass& pass, const MochiStream& stream, int64_t begin,
                 const TensorView& branch, int64_t row) const;

  int64_t width_, ffn_dim_;
  int32_t num_heads_;
  Linear modulation_, q_, k_, v_;
  Tensor norm_q_, norm_k_;  // [head_dim]
  Linear out_;
  Linear up_, down_;  // up: rows of the value, then of its gate
};

class MochiBlock {
 public:
  MochiBlock(const MochiConfig& config, int64_t layer, WeightReader& reader);
  // pass.act: both residuals -> both residuals. Throws Cancelled before any work.
  void forward(MochiPass& pass) const;

 private:
  int64_t layer_;
  MochiStreamBlock video_, text_;
};

}  // namespace lacuna
