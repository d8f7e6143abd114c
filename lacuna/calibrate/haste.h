// SPDX-License-Identifier: Apache-2.0
// HASTE's Error-guided Budgeted Calibration (arXiv 2605.14513, Algorithm 2):
// a parameter of the host per head.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "lacuna/calibrate/calibration.h"

namespace lacuna {

struct HasteSettings {
  std::string host = "xattention";  // as parse_plan reads it; its refresh rule goes to the profile
  std::string parameter = "top_p";  // of the host, one that may differ per head
  // Values tried for every head, besides the host's own; 1 is dense for a top-p host.
  std::vector<double> candidates = {0.85, 0.90, 0.95, 1.0};
  std::optional<double> budget;  // mean density; unset: that of the host's own value everywhere
  int intervals = 4;             // of each expert's steps; one step of each is sampled per head
  uint64_t seed = 0;             // of the sampling of steps and prompts
  std::string dense_steps;       // warm-up kept dense in the profile
};

// Measures, solves, and says so. Throws Error before step 0 on a bad host, parameter or candidate.
Calibration calibrate_haste(Subject& subject, const HasteSettings& settings,
                            const std::filesystem::path& progress_file, const WalkHooks& hooks);

}  // namespace lacuna
