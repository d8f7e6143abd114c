// SPDX-License-Identifier: Apache-2.0
// Which method, with which parameters, refresh rule and skip rule, runs at which site.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lacuna/backend/attend_params.h"
#include "lacuna/core/site.h"
#include "lacuna/methods/method.h"

namespace lacuna {

enum class RefreshKind : uint8_t {
  every_step,
  at_steps,  // AdaSpa: at the listed steps
  drift,     // HASTE Temporal Mask Reuse: when pooled q/k moved by more than delta
  never,     // select once, at the first sparse step
};

struct Refresh {
  RefreshKind kind = RefreshKind::every_step;
  std::vector<int> steps;  // at_steps
  double delta = 0.0;      // drift bound, relative L1 (methods_haste_xattention_svg.md 1.3)
  double gate_low = 0.4, gate_high = 0.8;  // layer gate (1.4): share of drifted heads
};

struct SkipRule {
  SkipKind kind = SkipKind::none;
  std::vector<float> param;  // 1 value or one per head; meaning in attend_params.h
  std::vector<float> kappa;  // recall only; empty = 1
};

// What to do at the sites a rule matches.
struct Plan {
  const Method* method = nullptr;  // null = dense
  Params params;
  Refresh refresh;
  SkipRule skip;
};

// Half-open ranges; an empty list of layers matches every layer.
struct SiteMatch {
  int step_begin = 0, step_end = 1 << 30;
  float sigma_min = 0.0f, sigma_max = 2.0f;
  std::vector<int> layers;
  std::optional<Branch> branch;
  std::optional<int> expert;
  bool matches(const Site& site) const;
};

struct Rule {
  SiteMatch match;
  Plan plan;
  std::string reason;  // shown by the trace when the plan is dense: "dense-steps", "min-tokens", ...
};

// Ordered rules, first match wins; no match = dense ("no rule").
class Policy {
 public:
  void add(Rule rule) { rules_.push_back(std::move(rule)); }
  const Rule& at(const Site& site) const;
  const std::vector<Rule>& rules() const { return rules_; }

 private:
  std::vector<Rule> rules_;
};

// Parses `xattention:top_p=0.9,stride=16`; names and ranges are checked against ParamSpec.
Plan parse_plan(std::string_view method_spec);
// Parses `none`, `running_max:lambda=0.01`, `running_lse:lambda=-6`, `recall:r=0.95,kappa=0.5`.
SkipRule parse_skip(std::string_view spec);
// `0-9,12` -> {0,...,9,12}. Throws Error on anything else.
std::vector<int> parse_index_list(std::string_view text);

}  // namespace lacuna
