// SPDX-License-Identifier: Apache-2.0
// What every calibration method ends in: a profile, and what was measured beside what was chosen.
#pragma once

#include <filesystem>

#include "lacuna/calibrate/walk.h"
#include "lacuna/engine/json_object.h"
#include "lacuna/engine/profile.h"

namespace lacuna {

struct Calibration {
  Profile profile;
  Json measurements;  // one object; the method adds its own keys to those of describe_target()
};

// NAME.profile.json (any other name too), with NAME.measurements.json and, while it runs,
// NAME.profile.json.progress.safetensors beside it.
struct CalibrationFiles {
  std::filesystem::path profile;
  std::filesystem::path measurements() const;
  std::filesystem::path progress() const;
};

// {"schema": "lacuna-measurements", "method": ..., model, grid, steps, prompts}.
Json describe_target(const Subject& subject, const char* method);
// The rules that keep `dense_steps` dense (see make_policy), to stand before all others.
std::vector<ProfileRule> dense_rules(int num_steps, std::string_view dense_steps);
// The rule of one layer; names the expert only when there are two.
ProfileRule layer_rule(const Subject& subject, int expert, int layer);
// Writes profile and measurements, then removes the progress file.
void save_calibration(const Calibration& result, const CalibrationFiles& files);

}  // namespace lacuna
