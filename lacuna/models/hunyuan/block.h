// SPDX-License-Identifier: Apache-2.0
// The two kinds of transformer blocks of HunyuanVideo. Rows of every buffer are the video tokens in
// raster order, then the tokens of the prompt that is computed.
#pragma once

#include <cstdint>
#include <string>

#include "lacuna/core/site.h"
#include "lacuna/core/video_grid.h"
#include "lacuna/engine/engine.h"
#include "lacuna/models/context.h"
#include "lacuna/models/hunyuan/conditioning.h"
#include "lacuna/models/hunyuan/hunyuan_config.h"
#include "lacuna/models/weights.h"

namespace lacuna {

// Scratch of one forward, views into Context::workspace, for the longest prompt. See
// HunyuanConfig::activation_bytes().
struct HunyuanActivations {
  TensorView residual;    // [R, d] f32
  TensorView normed;      // [R, d] compute: input of the linears, then the attention output
  TensorView q, k, v;     // [R, d] compute; free outside attention
  TensorView patches;     // [N, patch values] f32
  TensorView modulation;  // [2, 6, d] f32, on the host: of video and of text
  TensorView condition;   // [1, d] compute, on the host: activate_condition()
  TensorView hidden;      // raw bytes of what is made rows_at_once
  int64_t part_rows = 0;
  // residual: the stream to go on with, or empty.
  static HunyuanActivations take(Context& ctx, const HunyuanConfig& config, int64_t video_tokens,
                                 const TensorView& residual);
};

struct RowRange {
  int64_t begin = 0, end = 0;
};

// Everything that is the same for all blocks of one forward.
struct HunyuanPass {
  Context& ctx;
  Engine& engine;
  const HunyuanConfig& config;
  Site site;  // layer is set per block
  VideoGrid grid;
  RopeTables rope;
  const HunyuanTime& time;
  const HunyuanText& text;
  HunyuanActivations act;

  RowRange video_rows() const { return {0, grid.tokens()}; }
  RowRange text_rows() const { return {grid.tokens(), grid.tokens() + text.rows}; }
  RowRange all_rows() const { return {0, grid.tokens() + text.rows}; }
  // `linear` of the condition: its chunks of d values, in place of row `first` of act.modulation.
  const float* modulate(const Linear& linear, int64_t first = 0) const;
  // LN(residual) * (1 + scale) + shift of these rows.
  void norm(RowRange rows, const float* scale, const float* shift, const TensorView& out) const;
  // residual += gate * down(activation(up(normed))) of these rows.
  void feed_forward(RowRange rows, const Linear& up, const Linear& down, Epilogue activation,
                    const float* gate) const;
  // Attention of all rows, into act.normed.
  void attend() const;
};

// q, k and v of a stream, and how their heads are normed.
struct HunyuanQkv {
  Linear q, k, v;
  Tensor norm_q, norm_k;  // [head_dim]
  // Names without `.weight`; `norms` ends in what stands before `q` and `k`.
  HunyuanQkv(const HunyuanConfig& config, WeightReader& reader, const std::string& q_name,
             const std::string& k_name, const std::string& v_name, const std::string& norms);
  void project(const HunyuanPass& pass, RowRange rows) const;  // act.normed -> act.q, k, v
  // Video rows are turned by their position, text rows are not.
  void norm_heads(const HunyuanPass& pass, RowRange rows) const;
};

// Video and text meet in attention only.
class HunyuanDualBlock {
 public:
  HunyuanDualBlock(const HunyuanConfig& config, int64_t index, WeightReader& reader);
  void forward(const HunyuanPass& pass) const;  // act.residual -> act.residual

 private:
  struct Stream {
    Linear modulation;  // shift, scale, gate of attention, then of the feed-forward
    HunyuanQkv qkv;
    Linear out, up, down;
  };
  static Stream read_video(const HunyuanConfig& config, const std::string& block,
                           WeightReader& reader);
  static Stream read_text(const HunyuanConfig& config, const std::string& block,
                          WeightReader& reader);
  static void before(const HunyuanPass& pass, const Stream& stream, RowRange rows,
                     const float* modulation);
  static void after(const HunyuanPass& pass, const Stream& stream, RowRange rows,
                    const float* modulation);

  Stream video_, text_;
};

// One stream of video and text, with the feed-forward beside attention.
class HunyuanSingleBlock {
 public:
  HunyuanSingleBlock(const HunyuanConfig& config, int64_t index, WeightReader& reader);
  void forward(const HunyuanPass& pass) const;  // act.residual -> act.residual

 private:
  Linear modulation_;  // shift, scale, gate
  HunyuanQkv qkv_;
  Linear up_, out_;  // out takes [attention | feed-forward]
};

}  // namespace lacuna
