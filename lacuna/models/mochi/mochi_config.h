// SPDX-License-Identifier: Apache-2.0
// Sizes of a Mochi 1 diffusion transformer, where they come from, and what they cost.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "lacuna/core/tensor.h"
#include "lacuna/core/video_grid.h"
#include "lacuna/models/patch.h"
#include "lacuna/models/transformer.h"

namespace lacuna {

// Video tokens of width d and text tokens of width `text_width` go through layers of their own and
// meet in attention, which both enter at width d.
struct MochiConfig {
  int64_t num_layers = 48;
  int64_t num_heads = 24;
  int64_t head_dim = 128;
  int64_t text_width = 1536;  // pooled_projection_dim; at most d
  int64_t in_channels = 12;
  int64_t out_channels = 12;
  int64_t text_dim = 4096;  // of the text encoder
  int64_t text_len = 256;   // most text tokens
  int64_t freq_dim = 256;
  int64_t patch = 2;  // rows and columns

  int64_t dim() const { return num_heads * head_dim; }
  // Of the feed-forward: two thirds of four times the width, rounded down.
  int64_t ffn_dim() const { return 8 * dim() / 3; }
  int64_t text_ffn_dim() const { return 8 * text_width / 3; }
  PatchSize patch_size() const { return {1, patch, patch}; }
  int64_t patch_inputs() const { return in_channels * patch * patch; }
  int64_t patch_outputs() const { return out_channels * patch * patch; }

  // Throws Error naming field, value and allowed range. A valid config cannot overflow int64 in any
  // product of its sizes with up to 2^30 tokens.
  void validate() const;
  // Token grid of a latent [in_channels, frames, height, width]; throws Error unless the patch
  // divides it and no axis has more than kMaxMochiPositions.
  VideoGrid grid(int64_t frames, int64_t height, int64_t width) const;

  bool operator==(const MochiConfig&) const = default;

  int64_t num_parameters() const;
  // With N video tokens and T of text: 4 (N + T)^2 d L of attention; 2 N L (4 d^2 + 3 d f) and
  // the text's products of linears.
  ForwardFlops flops(int64_t video_tokens, int64_t text_tokens) const;
};

// The network itself has no limit: positions are scaled to one area. This one bounds the tables.
inline constexpr int64_t kMaxMochiPositions = 1024;
// Of the pooler that makes one vector of the prompt.
inline constexpr int64_t kMochiPoolHeads = 8;

// "mochi-1", and "mochi-tiny", which exists for demonstrations with made-up weights. Throws Error
// listing the names.
MochiConfig mochi_preset(std::string_view name);
std::span<const std::string_view> mochi_preset_names();

// From the text of diffusers' config.json. The text is hostile: `who` (a file name) starts every
// message. Refuses by name what this port does not compute: other q/k norms and activations, more
// channels in than out.
MochiConfig mochi_config_from_json(std::string_view json, std::string_view who);

// Bytes of scratch that one forward takes from Context::workspace, with S = N + text_len:
//   S d (4 + 4 e) + 4 N max(patch inputs, patch outputs) + r f e + r max(f e, 4 d)
//   + 4 (5 d + 4 text_width) + rotary tables
// with e bytes per element of `compute` and r rows at a time (rows_at_once). The tables take
// 4 d (frames + height + width), which is counted as 4 d min(N + 2, 3 kMaxMochiPositions).
int64_t mochi_activation_bytes(const MochiConfig& config, int64_t video_tokens, DType compute);

// Of one prompt of text_len rows: its tokens at the first layer and its pooled vector.
int64_t mochi_prompt_bytes(const MochiConfig& config);

PassingWeights mochi_passing_weights(const MochiConfig& config, DType compute, double stored,
                                     bool lora);

}  // namespace lacuna
