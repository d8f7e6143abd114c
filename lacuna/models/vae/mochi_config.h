// SPDX-License-Identifier: Apache-2.0
// Shape of the decoder of an AutoencoderKLMochi.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace lacuna {

// Field names follow the diffusers config.json. Lists begin at the resolution of the pixels.
struct MochiVaeConfig {
  int64_t latent_channels = 12;
  std::vector<int64_t> block_out_channels = {128, 256, 512, 768};
  // Residual blocks: of the last map, of each up block, of the first map.
  std::vector<int64_t> layers_per_block = {3, 3, 4, 6, 3};
  std::vector<int64_t> temporal_expansions = {1, 2, 3}, spatial_expansions = {2, 2, 2};
  // [latent_channels]: z = latent * std + mean. Both empty = unknown: only raw latents can be
  // decoded.
  std::vector<float> latents_mean, latents_std;

  int64_t levels() const { return static_cast<int64_t>(block_out_channels.size()); }
  int64_t spatial_factor() const;
  int64_t temporal_factor() const;
};

// Reads a diffusers config.json of class AutoencoderKLMochi; what only the encoder needs is not
// looked at. Absent keys take the diffusers defaults, absent statistics the published ones when
// there are 12 channels, else they stay empty; latents_std is divided by scaling_factor. `where`
// names the text in messages. Throws Error on anything malformed, out of range or not supported.
MochiVaeConfig parse_mochi_vae_config(std::string_view json_text, std::string_view where);

}  // namespace lacuna
