// SPDX-License-Identifier: Apache-2.0
// A forward whose weights and inputs are pure functions of their names, so that
// its result can be compared with numbers from upstream without any fixture file.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lacuna/backend/backend.h"
#include "lacuna/core/tensor.h"
#include "lacuna/engine/policy.h"
#include "lacuna/models/wan/conditioning.h"
#include "lacuna/models/wan/dit.h"

namespace lacuna {

struct WanHashCase {
  std::string tag;  // "wan-t837"; probe weights are called "probe:" + tag
  WanConfig config;
  std::string weights = "w:";  // prefix of hash_weights()
  DType storage = DType::f32;
  // Inputs are uniform with unit variance.
  std::string latent_name;
  int64_t frames = 0, height = 0, width = 0;  // of the latent
  std::string text_name;
  int64_t text_rows = 0;  // rows made from the hash
  int64_t text_len = 0;   // more than text_rows = padded
  std::string image_name;
  int64_t image_rows = 0;  // of networks with an image_dim
  struct Range {
    int64_t tokens;
    double timestep;
  };
  std::vector<Range> times;
};

// 3 layers, 2 heads of 64: the network of the published module goldens.
WanConfig golden_wan_config();
// "wan-t837" (one timestep) and "wan-ti2v" (first frame at 0, the rest at 500).
std::vector<WanHashCase> golden_wan_cases();

// A tensor of hash values with unit variance: sqrt(3) * u.
Tensor hash_input(const std::string& name, std::initializer_list<int64_t> shape);

// Runs the case dense, or under `policy`; returns [out_channels, frames, height, width] f32.
Tensor run_hash_case(Backend& backend, DType compute, const WanHashCase& hash_case,
                     const WanTap* tap = nullptr, const Policy& policy = {});

}  // namespace lacuna
