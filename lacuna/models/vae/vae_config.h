// SPDX-License-Identifier: Apache-2.0
// Shape of an AutoencoderKLWan (Wan 2.1, Wan 2.2 or a custom one of the same classes).
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace lacuna {

// Field names follow the diffusers config.json (with "temperal" spelled right).
struct VaeConfig {
  int64_t base_dim = 96;          // encoder width
  int64_t decoder_base_dim = 96;  // decoder width
  int64_t z_dim = 16;             // latent channels
  std::vector<int64_t> dim_mult = {1, 2, 4, 4};
  int64_t num_res_blocks = 2;
  std::vector<uint8_t> temporal_downsample = {0, 1, 1};  // one per resolution change, encoder order
  bool is_residual = false;  // Wan 2.2: parameter-free shortcuts around up and down blocks
  int64_t patch_size = 1;    // pixels per side folded into channels; 2 in Wan 2.2
  // [z_dim]: z = latent * std + mean. Both empty = unknown: only raw latents can be decoded.
  std::vector<float> latents_mean, latents_std;

  int64_t num_levels() const { return static_cast<int64_t>(dim_mult.size()); }
  int64_t pixel_channels() const { return 3 * patch_size * patch_size; }
  int64_t spatial_factor() const { return patch_size << (num_levels() - 1); }
  int64_t temporal_factor() const;
  // Channels of the decoder's conv_in output (index 0), then of each up block's resnets.
  std::vector<int64_t> decoder_dims() const;
  // Channels of the encoder's conv_in output (index 0), then of each down block's resnets.
  std::vector<int64_t> encoder_dims() const;
  // Whether up block `b` doubles time; meaningful for b < num_levels() - 1.
  bool temporal_upsample(int64_t b) const;
  // Frames <-> latent frames: 1 + temporal_factor * (latent - 1). The inverse throws Error when
  // `frames` is not of that form.
  int64_t frames_out(int64_t latent_frames) const;
  int64_t latent_frames(int64_t frames) const;
};

// The latent frames of a causal decoder whose first one becomes one frame and all others `factor`.
// Throws Error when `frames` is not of that form.
int64_t latent_frames_of(int64_t frames, int64_t factor);

// "wan2.1" (also A14B), "wan2.2" (TI2V-5B), and the small configurations of the golden numbers:
// "tiny" (2.1 kind, z 4, statistics of the end-to-end golden) and "tiny-2.2" (z 6, unit
// statistics). Throws Error listing the names.
VaeConfig vae_preset(std::string_view name);

// Reads a diffusers config.json of class AutoencoderKLWan. Absent keys take the diffusers defaults;
// absent statistics take the published tables when z_dim is 16 or 48, else stay empty. `where`
// names the text in messages. Throws Error on anything malformed, out of range or not supported.
VaeConfig parse_vae_config(std::string_view json_text, std::string_view where);

// Throws Error naming the first field that cannot be right.
void check_vae_config(const VaeConfig& config, std::string_view where);

}  // namespace lacuna
