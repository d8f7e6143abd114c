// SPDX-License-Identifier: Apache-2.0
// Checking and writing profiles. Reading is in profile_load.cc.
#include "lacuna/engine/profile.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "lacuna/core/atomic_file.h"
#include "lacuna/core/error.h"
#include "lacuna/core/safetensors.h"
#include "lacuna/engine/json_object.h"
#include "lacuna/engine/profile_format.h"
#include "lacuna/methods/selection.h"

namespace lacuna {

namespace {

// One value, or an array of one per head.
template <typename T>
Json values_json(std::span<const T> values) {
  if (values.size() == 1) return static_cast<double>(values[0]);
  Json list = Json::array();
  for (T value : values) list.push_back(static_cast<double>(value));
  return list;
}

Json match_json(const SiteMatch& match) {
  const SiteMatch all;
  Json json = Json::object();
  if (match.step_begin != all.step_begin || match.step_end != all.step_end)
    json["steps"] = {match.step_begin, match.step_end};
  if (match.sigma_min != all.sigma_min || match.sigma_max != all.sigma_max)
    json["sigmas"] = {static_cast<double>(match.sigma_min), static_cast<double>(match.sigma_max)};
  if (!match.layers.empty()) json["layers"] = match.layers;
  if (match.branch) json["branch"] = branch_name(*match.branch);
  if (match.expert) json["expert"] = *match.expert;
  if (match.max_tokens != all.max_tokens) json["max_tokens"] = match.max_tokens;
  return json;
}

Json refresh_json(const Refresh& refresh) {
  Json json;
  json["kind"] = refresh_info(refresh.kind).name;
  if (refresh.kind == RefreshKind::at_steps) json["at"] = refresh.steps;
  if (refresh.kind == RefreshKind::carry) json["retest"] = refresh.retest;
  if (refresh.kind == RefreshKind::drift) {
    json["delta"] = refresh.delta;
    json["gate_low"] = refresh.gate_low;
    json["gate_high"] = refresh.gate_high;
    json["relative"] = refresh.relative ? 1 : 0;
    json["pool"] = refresh.pool;
  }
  return json;
}

Json skip_json(const SkipRule& skip) {
  Json json;
  json["kind"] = skip_info(skip.kind).name;
  for (const SkipValue& value : skip_values(skip))
    json[std::string(value.name)] = values_json(value.values);
  return json;
}

Json mask_json(const Selection& masks, const ProfileTarget& target) {
  LACUNA_CHECK(
      masks.q_order.empty() && masks.k_order.empty() && masks.q_layout.offsets.empty() &&
          masks.k_layout.offsets.empty() && !masks.mask.empty(),
      "save_profile: fixed masks with a token order, explicit offsets or no bits, expected "
      "uniform blocks in raster order");
  check_selection(masks, "save_profile", target.num_heads,
                  target.grid.tokens() + target.text_tokens, 0);
  return {{"hash", mask_hash_text(masks.mask.hash())},
          {"block_q", masks.q_layout.block},
          {"block_k", masks.k_layout.block}};
}

Json rule_json(const ProfileRule& item, const ProfileTarget& target) {
  const Plan& plan = item.rule.plan;
  Json json;
  json["match"] = match_json(item.rule.match);
  if (!item.rule.reason.empty()) json["reason"] = item.rule.reason;
  if (plan.method != nullptr) {
    json["method"] = plan.method->name();
    Json params = Json::object();
    for (const ParamSpec& spec : plan.method->specs())
      params[std::string(spec.name)] = values_json(plan.params.values(spec.name));
    if (!params.empty()) json["params"] = params;
    json["refresh"] = refresh_json(plan.refresh);
    if (plan.compensate != Compensation::none)
      json["compensate"] = compensation_info(plan.compensate).name;
    if (plan.fixed != nullptr) json["mask"] = mask_json(*plan.fixed, target);
  }
  if (plan.skip.kind != SkipKind::none) json["skip"] = skip_json(plan.skip);
  if (item.density) json["density"] = *item.density;
  return json;
}

Json formulas_json(const Profile& profile) {
  std::map<std::string, int> formulas;
  for (const ProfileRule& item : profile.rules)
    for (const auto& [name, version] : formulas_of(item.rule.plan)) formulas[name] = version;
  return formulas;
}

// Masks of all rules, one tensor per distinct mask.
std::map<std::string, const BlockMask*> masks_of(const Profile& profile) {
  std::map<std::string, const BlockMask*> masks;
  for (const ProfileRule& item : profile.rules)
    if (item.rule.plan.fixed != nullptr) {
      const BlockMask& mask = item.rule.plan.fixed->mask;
      masks[mask_tensor_name(mask.hash())] = &mask;
    }
  return masks;
}

void write_masks(const std::map<std::string, const BlockMask*>& masks,
                 const std::filesystem::path& path) {
  std::vector<Tensor> storage;
  std::vector<std::pair<std::string, TensorView>> tensors;
  for (const auto& [name, mask] : masks) {
    Tensor words(DType::i64, {mask->num_heads(), mask->num_q_blocks(), mask->words_per_row()});
    for (int64_t h = 0; h < mask->num_heads(); ++h)
      for (int32_t qb = 0; qb < mask->num_q_blocks(); ++qb) {
        const auto row = mask->row(h, qb);
        std::memcpy(words.as<int64_t>() + (h * mask->num_q_blocks() + qb) * mask->words_per_row(),
                    row.data(), row.size_bytes());
      }
    tensors.emplace_back(name, words.view());
    storage.push_back(std::move(words));
  }
  write_safetensors(path, tensors);
}

// Top-level keys and rules on a line each: readable, and diffs stay small.
std::string profile_text(const Json& json) {
  std::string text = "{\n";
  for (const auto& [key, value] : json.items()) {
    if (text.size() > 2) text += ",\n";
    text += fmt::format("  {}: ", dump_json(key));
    if (key != "rules" || value.empty()) {
      text += dump_json(value);
      continue;
    }
    text += "[";
    for (size_t i = 0; i < value.size(); ++i)
      text += fmt::format("{}\n    {}", i == 0 ? "" : ",", dump_json(value[i]));
    text += "\n  ]";
  }
  return text + "\n}\n";
}

}  // namespace

std::string mask_tensor_name(uint64_t hash) {
  return "mask-" + mask_hash_text(hash);
}

std::vector<std::pair<std::string, int>> formulas_of(const Plan& plan) {
  std::vector<std::pair<std::string, int>> formulas;
  const auto add = [&](const char* axis, std::string_view name, int version) {
    formulas.emplace_back(fmt::format("{}.{}", axis, name), version);
  };
  if (plan.method != nullptr) {
    add("method", plan.method->name(), plan.method->formula());
    const RefreshInfo& refresh = refresh_info(plan.refresh.kind);
    add("refresh", refresh.name, refresh.formula);
    const CompensationInfo& compensation = compensation_info(plan.compensate);
    if (plan.compensate != Compensation::none)
      add("compensate", compensation.name, compensation.formula);
  }
  if (plan.skip.kind != SkipKind::none) {
    const SkipInfo& skip = skip_info(plan.skip.kind);
    add("skip", skip.name, skip.formula);
  }
  return formulas;
}

Policy Profile::policy() const {
  Policy policy;
  for (const ProfileRule& item : rules) policy.add(item.rule);
  return policy;
}

void check_profile(const Profile& profile, const ProfileTarget& run) {
  ProfileTarget same = run;
  if (!run.base.empty() && profile.target.fingerprint == run.base) same.fingerprint = run.base;
  // Parameters serve prompts of any length, masks those they were made for.
  const bool holds_masks =
      std::any_of(profile.rules.begin(), profile.rules.end(),
                  [](const ProfileRule& item) { return item.rule.plan.fixed != nullptr; });
  if (!holds_masks) same.text_tokens = profile.target.text_tokens;
  check_target(profile.target, same, "profile");
}

std::filesystem::path profile_masks(const std::filesystem::path& profile) {
  std::filesystem::path side = profile;
  return side.replace_extension(".safetensors");
}

void save_profile(const Profile& profile, const std::filesystem::path& path) {
  const ProfileTarget& target = profile.target;
  Json json;
  json["schema"] = kProfileSchema;
  json["version"] = kProfileVersion;
  json["formulas"] = formulas_json(profile);
  add_target(target, json);
  const auto masks = masks_of(profile);
  const std::filesystem::path side = profile_masks(path);
  if (!masks.empty()) json["masks_file"] = side.filename().string();
  json["rules"] = Json::array();
  for (const ProfileRule& item : profile.rules) json["rules"].push_back(rule_json(item, target));
  check_profile_json(json, "save_profile");
  const std::string text = profile_text(json);
  // Masks first: a reader of the new JSON must find them.
  if (!masks.empty()) write_masks(masks, side);
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

}  // namespace lacuna
