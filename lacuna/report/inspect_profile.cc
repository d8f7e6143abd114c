// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <set>

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

// The first rule that matches; null where none does. An expert follows from the step, so a rule of
// one is taken for whichever runs.
const ProfileRule* deciding_rule(const Profile& profile, int step, int layer, Branch branch) {
  const ProfileTarget& target = profile.target;
  Site site;
  site.step = step, site.layer = layer, site.branch = branch;
  site.sigma = static_cast<float>(target.sigmas[static_cast<size_t>(step)]);
  const auto found =
      std::find_if(profile.rules.begin(), profile.rules.end(), [&](const ProfileRule& item) {
        site.expert = item.rule.match.expert.value_or(0);
        return item.rule.match.matches(site, target.grid.tokens() + target.text_tokens);
      });
  return found == profile.rules.end() ? nullptr : &*found;
}

// Masks in force, at every step where that of some layer changes. A mask of all layers is shown
// once, as that of the first.
std::vector<PlacedMask> places_of(const Profile& profile) {
  std::set<int> layers, steps{0};
  for (const ProfileRule& item : profile.rules) {
    const SiteMatch& match = item.rule.match;
    steps.insert({match.step_begin, match.step_end});
    if (item.rule.plan.fixed == nullptr) continue;
    layers.insert(match.layers.begin(), match.layers.end());
    if (match.layers.empty()) layers.insert(0);
  }
  std::vector<PlacedMask> places;
  for (const int step : steps) {
    if (step >= profile.target.num_steps()) break;
    for (const int layer : layers)
      for (const Branch branch : {Branch::cond, Branch::uncond}) {
        const ProfileRule* item = deciding_rule(profile, step, layer, branch);
        if (item == nullptr || item->rule.plan.fixed == nullptr) continue;
        const auto index = static_cast<size_t>(item - profile.rules.data());
        places.push_back({step, layer, branch, index,
                          fmt::format("rule {}{}", index,
                                      item->rule.match.layers.empty() ? ", all layers" : "")});
      }
  }
  return places;
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
  series.places = places_of(profile);
  series.selection = [&](size_t i) { return *profile.rules[i].rule.plan.fixed; };
  add_mask_sections(series, sections);
}

}  // namespace lacuna
