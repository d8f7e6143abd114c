// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include "lacuna/engine/explain.h"
#include "lacuna/engine/profile_format.h"
#include "lacuna/report/inspect_parts.h"

namespace lacuna {
namespace {

std::string layers_text(const std::vector<int>& layers) {
  return layers.empty() ? "all" : fmt::format("{}", fmt::join(layers, ","));
}

std::string steps_text(const SiteMatch& match, int num_steps) {
  const int end = std::min(match.step_end, num_steps);
  return match.step_begin == 0 && end == num_steps ? "all" : range_text(match.step_begin, end);
}

Json rule_rows(const Profile& profile) {
  Json rows = Json::array();
  for (size_t i = 0; i < profile.rules.size(); ++i) {
    const auto& [rule, density] = profile.rules[i];
    const SiteMatch& match = rule.match;
    rows.push_back({{"rule", i},
                    {"steps", steps_text(match, profile.target.num_steps())},
                    {"layers", layers_text(match.layers)},
                    {"branch", match.branch ? branch_name(*match.branch) : "both"},
                    {"expert", match.expert ? Json(*match.expert) : Json()},
                    {"what", describe(rule)},
                    {"why", rule.reason},
                    {"density", density ? Json(*density) : Json()}});
  }
  return rows;
}

}  // namespace

void add_profile_sections(const Profile& profile, Json& sections) {
  sections.push_back(table_section("Rules", "The first that matches decides; none = dense.",
                                   {{"rule", "rule"},
                                    {"steps", "steps"},
                                    {"layers", "layers"},
                                    {"branch", "branch"},
                                    {"expert", "expert"},
                                    {"what", "rule"},
                                    {"why", "dense because"},
                                    {"density", "density", "", "when it was made", 3}},
                                   rule_rows(profile)));
  MaskSeries series;
  series.num_heads = profile.target.num_heads;
  series.grid = profile.target.grid;
  for (size_t i = 0; i < profile.rules.size(); ++i) {
    const Rule& rule = profile.rules[i].rule;
    if (rule.plan.fixed == nullptr) continue;
    const std::string note = fmt::format("rule {}", i);
    const Branch branch = rule.match.branch.value_or(Branch::cond);
    if (rule.match.layers.empty())
      series.places.push_back({rule.match.step_begin, 0, branch, i, note + ", all layers"});
    for (const int layer : rule.match.layers)
      series.places.push_back({rule.match.step_begin, layer, branch, i, note});
  }
  series.selection = [&](size_t i) { return *profile.rules[i].rule.plan.fixed; };
  add_mask_sections(series, sections);
}

}  // namespace lacuna
