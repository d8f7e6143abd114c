// SPDX-License-Identifier: Apache-2.0
// A forward of Mochi whose weights and inputs are pure functions of their names, so that its result
// can be compared with numbers from upstream without any fixture file.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lacuna/backend/backend.h"
#include "lacuna/core/tensor.h"
#include "lacuna/engine/policy.h"
#include "lacuna/models/mochi/mochi_config.h"

namespace lacuna {

struct MochiHashCase {
  std::string tag;  // "mochi"; probe weights are called "probe:" + tag
  MochiConfig config;
  std::string weights = "w:";  // prefix of hash_weights()
  DType storage = DType::f32;
  // Inputs are uniform with unit variance, [samples, ...] of one name.
  std::string latent_name;
  int64_t frames = 0, height = 0, width = 0;  // of the latent
  std::string text_name;
  int64_t text_rows = 0;       // of each sample, made from the hash
  std::vector<int64_t> valid;  // the first rows that count, of each sample
  double timestep = 0.0;
};

// 3 layers, 2 heads of 16: the network of the published goldens.
MochiConfig golden_mochi_config();

// Runs every sample of the case dense, or under `policy`; returns [samples, out_channels, frames,
// height, width] f32.
Tensor run_hash_case(Backend& backend, DType compute, const MochiHashCase& hash_case,
                     const Policy& policy = {});

}  // namespace lacuna
