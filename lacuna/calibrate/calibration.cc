// SPDX-License-Identifier: Apache-2.0
#include "lacuna/calibrate/calibration.h"

#include "lacuna/core/atomic_file.h"

namespace lacuna {

namespace fs = std::filesystem;

fs::path CalibrationFiles::measurements() const {
  fs::path stem = profile.filename().replace_extension();  // NAME.profile of NAME.profile.json
  if (stem.extension() == ".profile") stem.replace_extension();
  return profile.parent_path() / (stem.string() + ".measurements.json");
}

fs::path CalibrationFiles::progress() const {
  return profile.string() + ".progress.safetensors";
}

Json describe_target(const Subject& subject, const char* method) {
  const ProfileTarget& target = subject.target();
  Json json;
  json["schema"] = "lacuna-measurements";
  json["method"] = method;
  json["model"] = target.model;
  json["fingerprint"] = target.fingerprint;
  json["grid"] = {target.grid.frames, target.grid.height, target.grid.width};
  json["steps"] = target.num_steps();
  json["prompts"] = subject.num_prompts();
  return json;
}

std::vector<ProfileRule> dense_rules(int num_steps, std::string_view dense_steps) {
  const Policy policy = make_policy(Plan(), SkipRule(), dense_steps, "", 0, num_steps);
  std::vector<ProfileRule> rules;
  for (const Rule& rule : policy.rules())
    if (rule.reason == "dense-steps") rules.push_back({rule, {}});
  return rules;
}

ProfileRule layer_rule(const Subject& subject, int expert, int layer) {
  ProfileRule item;
  item.rule.match.layers = {layer};
  if (subject.num_experts() > 1) item.rule.match.expert = expert;
  return item;
}

void save_calibration(const Calibration& result, const CalibrationFiles& files) {
  save_profile(result.profile, files.profile);
  AtomicFile measurements(files.measurements());
  measurements.write(result.measurements.dump(1) + "\n");
  measurements.commit();
  fs::remove(files.progress());
}

}  // namespace lacuna
