// SPDX-License-Identifier: Apache-2.0
// A VAE run whose weights and input are pure functions of their names, so that its
// result can be compared with numbers from upstream without any fixture file.
#pragma once

#include <array>
#include <cstdint>
#include <numbers>
#include <string>
#include <string_view>

#include "lacuna/models/vae/video_decoder.h"

namespace lacuna {

struct VaeHashCase {
  std::string tag;             // probe weights are called "probe:" + tag
  std::string config;          // JSON, of any class
  std::string weights = "w:";  // prefix of hash_weights()
  DType storage = DType::f32;
  bool encode = false;
  std::string input_name;          // amplitude * u
  std::array<int64_t, 4> shape{};  // latents [z, T, h, w] or video [3, F, H, W]
  double amplitude = std::numbers::sqrt3;
  int64_t latent_frames = 0;  // decode only the first so many; 0 = all
  Tiling tiling;
  int64_t frames_per_pass = 1;
};

// Reads a case of assets/goldens/*.json whose module is "vae". Throws Error on anything else; sizes
// are bounded.
VaeHashCase parse_vae_hash_case(std::string_view case_json, std::string_view where);

// The case's input, cut to latent_frames.
Tensor vae_hash_input(const VaeHashCase& hash_case);

// Runs it without latent statistics: video [3, F, H, W], or the mode of the latents [z, T, h, w];
// f32. Throws Error on a config that is not to be had.
Tensor run_vae_hash_case(Backend& backend, DType compute, const VaeHashCase& hash_case);

}  // namespace lacuna
