// SPDX-License-Identifier: Apache-2.0
// Forwards whose weights and inputs are pure functions of their names (docs/formats.md, "Hash"), so
// that their results can be compared with upstream's without any fixture file.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lacuna/backend/backend.h"
#include "lacuna/core/tensor.h"
#include "lacuna/engine/policy.h"
#include "lacuna/models/hunyuan/hunyuan_config.h"

namespace lacuna {

struct HunyuanHashCase {
  HunyuanConfig config;
  std::string weights = "w:";  // prefix of hash_weights()
  DType storage = DType::f32;
  // Inputs are uniform with unit variance, and have the prompts as their first axis.
  std::string latent_name, text_name, pooled_name;
  int64_t frames = 0, height = 0, width = 0;  // of the latent
  int64_t text_rows = 0;                      // of each prompt
  std::vector<int64_t> valid_rows;            // that are computed with, per prompt
  double timestep = 0.0, guidance = 0.0;
};

// The network of the published module golden: 2 heads of 16, 2 dual and 2 single blocks.
HunyuanConfig golden_hunyuan_config();
// "hunyuan": two prompts of 11 and 3 words.
HunyuanHashCase golden_hunyuan_case();

// Runs each prompt of the case, dense or under `policy`; returns [prompts, channels, frames,
// height, width] f32.
Tensor run_hash_case(Backend& backend, DType compute, const HunyuanHashCase& hash_case,
                     const Policy& policy = {});

}  // namespace lacuna
