// SPDX-License-Identifier: Apache-2.0
// Shape of the decoder of an AutoencoderKLHunyuanVideo (HunyuanVideo 1.0).
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

namespace lacuna {

// Field names follow the diffusers config.json.
struct HunyuanVaeConfig {
  static constexpr int64_t kLevels = 4, kSpatialFactor = 8, kTemporalFactor = 4;

  int64_t latent_channels = 16;
  std::vector<int64_t> block_out_channels = {128, 256, 512, 512};  // the pixels' resolution first
  int64_t layers_per_block = 2;
  int32_t norm_num_groups = 32;
  float scaling_factor = 0.476986f;  // z = latent / scaling_factor
  bool mid_block_add_attention = true;

  // Every up block but the last doubles height and width; these also double time.
  static bool temporal_upsample(int64_t block) { return block == 1 || block == 2; }
};

// Reads a diffusers config.json of class AutoencoderKLHunyuanVideo; what only the encoder needs is
// not looked at. Absent keys take the diffusers defaults. `where` names the text in messages.
// Throws Error on anything malformed, out of range or not supported, block types by their name.
HunyuanVaeConfig parse_hunyuan_vae_config(std::string_view json_text, std::string_view where);

}  // namespace lacuna
