// SPDX-License-Identifier: Apache-2.0
// Sizes of a HunyuanVideo 1.0 transformer (text-to-video), where they come from, what they cost.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "lacuna/core/tensor.h"
#include "lacuna/core/video_grid.h"
#include "lacuna/models/patch.h"
#include "lacuna/models/rope.h"
#include "lacuna/models/transformer.h"

namespace lacuna {

struct HunyuanConfig {
  int64_t num_layers = 0;          // dual: text and video have weights of their own
  int64_t num_single_layers = 0;   // one stream of video and text
  int64_t num_refiner_layers = 2;  // of the text alone, before the others
  int64_t num_heads = 24;
  int64_t head_dim = 128;
  int64_t channels = 16;  // of the latent, in and out
  double mlp_ratio = 4.0;
  int64_t patch_t = 1, patch_side = 2;
  int64_t text_dim = 4096;
  int64_t text_len = 256;  // rows that the model was trained with
  int64_t pooled_dim = 768;
  bool guidance_embeds = true;
  double rope_theta = 256.0;
  RopeChannels rope_channels = {16, 56, 56};

  int64_t dim() const { return num_heads * head_dim; }
  int64_t mlp_dim() const { return static_cast<int64_t>(static_cast<double>(dim()) * mlp_ratio); }
  int64_t refiner_mlp_dim() const { return 4 * dim(); }  // whatever mlp_ratio says
  int64_t all_layers() const { return num_layers + num_single_layers; }
  PatchSize patch() const { return {patch_t, patch_side, patch_side}; }
  int64_t patch_values() const { return channels * patch().volume(); }

  // Throws Error naming field, value and allowed range. A valid config cannot overflow int64 in any
  // product of its sizes with up to 2^30 tokens.
  void validate() const;
  // Token grid of a latent [channels, frames, height, width]; throws Error unless the patch divides
  // it and every axis has at most kRopePositions tokens.
  VideoGrid grid(int64_t frames, int64_t height, int64_t width) const;
  static constexpr int64_t kRopePositions = 1024;
  static constexpr int64_t kTimestepChannels = 256;  // of a sinusoid

  bool operator==(const HunyuanConfig&) const = default;

  int64_t num_parameters() const;
  ForwardFlops flops(int64_t video_tokens, int64_t text_tokens) const;
  // Bytes of scratch that one forward takes from Context::workspace:
  //   R d (4 + 4 e) + 4 N p + max(r e max(d + f, 4 d), 4 r d) + (48 + e) d
  // with N video tokens, R = N + text_len, p values of a patch, f = mlp_dim, e bytes per element of
  // `compute` and r = rows_at_once(R). Converted weights come on top: passing_weights().
  int64_t activation_bytes(int64_t video_tokens, DType compute) const;
  int64_t prompt_bytes() const;
  PassingWeights passing_weights(DType compute, double stored, bool lora) const;
};

// "hunyuanvideo", and "hunyuanvideo-tiny", which exists for demonstrations with made-up weights.
// Throws Error listing the names.
HunyuanConfig hunyuan_preset(std::string_view name);
std::span<const std::string_view> hunyuan_preset_names();

// From the text of a diffusers config.json. The text is hostile: `who` (a file name) starts every
// message. Refuses by name what this port does not compute: image conditioning, other q/k norms,
// HunyuanVideo 1.5, FramePack.
HunyuanConfig hunyuan_config_from_json(std::string_view json, std::string_view who);

}  // namespace lacuna
