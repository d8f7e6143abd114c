// SPDX-License-Identifier: Apache-2.0
// Small autoencoders of the joint-attention families, as vae/config.json says them.
#pragma once

namespace lacuna::testing {

inline constexpr const char* kTinyMochiVae = R"({
  "_class_name": "AutoencoderKLMochi", "latent_channels": 4,
  "decoder_block_out_channels": [32, 32, 64, 64], "layers_per_block": [1, 1, 2, 1, 2],
  "latents_mean": [0.1, -0.2, 0.3, -0.4], "latents_std": [1.5, 0.5, 2.0, 1.0]})";

inline constexpr const char* kTinyHunyuanVae = R"({
  "_class_name": "AutoencoderKLHunyuanVideo", "latent_channels": 4,
  "block_out_channels": [8, 8, 16, 16], "layers_per_block": 1, "norm_num_groups": 4})";

}  // namespace lacuna::testing
