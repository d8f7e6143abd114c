// SPDX-License-Identifier: Apache-2.0
// Expected numbers of a golden case, and holding a tensor against them.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "lacuna/core/tensor.h"
#include "lacuna/models/pipeline/verify.h"

namespace lacuna {

using GoldenJson = nlohmann::ordered_json;

// `expect` = {shape, tag, rms, probe, values, sum} as documented in docs/formats.md. `relative`
// replaces the element tolerance 2e-5 and the rms tolerance 1e-5 when positive.
// Throws Error when `expect` is malformed.
VerifyResult compare_numbers(const std::string& name, const GoldenJson& expect,
                             const TensorView& result, double relative);

struct Bf16Limit {
  double rel_l2, cos_sim;
};

// Relative L2 at most, and cosine at least, the limit's.
VerifyResult compare_runs(const std::string& name, const TensorView& result,
                          const TensorView& reference, const Bf16Limit& limit);

}  // namespace lacuna
