// SPDX-License-Identifier: Apache-2.0
// One transformer block of Wan: self-attention, cross-attention to the prompt, feed-forward.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "lacuna/core/site.h"
#include "lacuna/core/video_grid.h"
#include "lacuna/engine/engine.h"
#include "lacuna/models/context.h"
#include "lacuna/models/token_share.h"
#include "lacuna/models/wan/conditioning.h"
#include "lacuna/models/wan/wan_config.h"

namespace lacuna {

// Tokens [begin, end) are at this timestep, counted in the grid or, within a forward, in own rows.
struct TokenTime {
  int64_t begin = 0, end = 0;
  const TimeEmbedding* time = nullptr;
};

// Scratch of one forward, views into Context::workspace, for N rows: the tokens, or this process's
// share of them. See activation_bytes().
struct WanActivations {
  TensorView residual;    // [N, d] f32
  TensorView normed;      // [N, d] compute: input of the linears, then the attention output
  TensorView q, k, v;     // [N, d] compute; k and v are free outside self-attention
  TensorView patches;     // [N * max(patch inputs, patch outputs)] f32
  TensorView modulation;  // [kMaxTokenTimes, 6, d] f32, on the host
  TensorView hidden;      // raw bytes of the feed-forward and head chunks
  int64_t chunk_rows = 0;
  static WanActivations take(Context& ctx, const WanConfig& config, int64_t rows);
};

// Everything that is the same for all blocks of one forward.
struct WanPass {
  Context& ctx;
  Engine& engine;
  const WanConfig& config;
  Site site;  // layer is set per block
  VideoGrid grid;
  const TokenShare& share;
  std::vector<TokenShare::Box> boxes;  // of the share
  std::vector<TokenTime> times;        // of its rows
  const PreparedText& text;
  WanActivations act;
  const WanTap* tap = nullptr;

  int64_t rows() const { return share.tokens(); }
  // Hands a value to the tap, on the host; nothing without one.
  void show(std::string_view name, const TensorView& value) const;
};

class WanBlock {
 public:
  WanBlock(const WanConfig& config, int64_t layer, WeightReader& reader);

  // pass.act.residual -> pass.act.residual.
  void forward(WanPass& pass) const;
  // Keys and values of the prompt or of pictures for this layer; embedded [keys, d] in ctx.compute.
  void prepare_text(Context& ctx, const TensorView& embedded, Tensor& k, Tensor& v) const;
  void prepare_image(Context& ctx, const TensorView& embedded, Tensor& k, Tensor& v) const;

 private:
  // q/k norms act on the whole width, before the split into heads.
  struct Attention {
    Linear q, k, v, out;
    Tensor norm_q, norm_k;  // [d]
    Attention(const std::string& name, int64_t dim, WeightReader& reader);
  };

  // Keys and values of pictures in cross-attention, whose queries and output are the text's.
  struct ImageAttention {
    Linear k, v;
    Tensor norm_k;  // [d]
  };

  void prepare(Context& ctx, const TensorView& embedded, const Linear& to_k, const Linear& to_v,
               const Tensor& norm_k, Tensor& k, Tensor& v) const;
  void modulate(WanPass& pass) const;
  void self_attention(WanPass& pass) const;
  // Of all tokens: q, k, v of pass.act -> pass.act.normed.
  void attend(WanPass& pass) const;
  void cross_attention(WanPass& pass) const;
  void feed_forward(WanPass& pass) const;
  void feed_forward_rows(WanPass& pass, const TensorView& up, const TensorView& down, int64_t begin,
                         int64_t end, const float* gate) const;
  // residual[rows] += gate * linear(normed[rows]), one call per timestep.
  void add_gated(WanPass& pass, const Linear& linear, int64_t gate_row) const;
  // normed = LN(residual) * (1 + scale) + shift.
  void modulated_norm(WanPass& pass, int64_t shift_row, int64_t scale_row) const;
  void tap_linear(WanPass& pass, std::string_view name, const Linear& linear) const;
  void tap_feed_forward(WanPass& pass) const;
  std::string tap_name(std::string_view name) const;

  int64_t layer_, num_heads_, head_dim_;
  float eps_;
  Tensor table_;  // [6, d]: shift, scale, gate of self-attention, then of the feed-forward
  Attention self_, cross_;
  std::optional<ImageAttention> image_;
  Tensor norm2_weight_, norm2_bias_;  // [d]
  Linear up_, down_;
};

}  // namespace lacuna
