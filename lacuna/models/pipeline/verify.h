// SPDX-License-Identifier: Apache-2.0
// Golden cases: a module, its configuration, inputs that are functions of their names, and numbers
// that the upstream implementation gave (docs/formats.md). Runs them on this machine.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lacuna/backend/backend.h"
#include "lacuna/core/tensor.h"

namespace lacuna {

// One tensor held against its expected numbers.
struct VerifyResult {
  std::string name;  // "wan-t837", "wan-t837 blocks.0.attn1"
  bool passed = false;
  double worst = 0.0;  // largest error / tolerance; 1 is the limit
  std::string detail;  // what failed, or "" when passed
};

struct GoldenFile {
  std::string_view name, json;
};

// The cases shipped with the library (assets/goldens).
std::vector<GoldenFile> shipped_goldens();

// Runs every case of the file text `json` (`who` starts messages). compute f32: against the numbers
// of the file. compute bf16: against our own f32 run on the same backend, relative L2 and cosine;
// modules without a dtype (sampler) run once more in f32.
// The text is hostile: sizes are bounded before anything is allocated. Throws Error on a malformed
// file, an unknown module or a case that cannot run; numbers that differ are results, not errors.
void verify_goldens(std::string_view json, std::string_view who, Backend& backend, DType compute,
                    const std::function<void(const VerifyResult&)>& report);

}  // namespace lacuna
