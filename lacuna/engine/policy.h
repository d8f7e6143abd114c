// SPDX-License-Identifier: Apache-2.0
// Which method, with which parameters, refresh rule and skip rule, runs at which site.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lacuna/backend/attend_params.h"
#include "lacuna/core/site.h"
#include "lacuna/methods/method.h"

namespace lacuna {

// Steps, layers and heads are numbered below this in everything that is read: it bounds the memory
// a file or a list can ask for.
inline constexpr int kMaxIndex = 1 << 20;

enum class RefreshKind : uint8_t {
  every_step,
  at_steps,  // AdaSpa: at the listed steps
  drift,     // HASTE Temporal Mask Reuse: when pooled q/k moved by more than delta
  never,     // select once, at the first sparse step
  carry,     // LiteAttention: keep what the skip rule kept, select every `retest` steps
};

// When a head's mask is selected again; a head without a mask is always selected. See refresh.h.
struct Refresh {
  RefreshKind kind = RefreshKind::every_step;
  std::vector<int> steps;  // at_steps
  // drift (arXiv 2605.14513):
  double delta = 0.1;                      // bound on the drift; reaching it still reuses
  double gate_low = 0.4, gate_high = 0.8;  // layer gate: share of drifted heads
  bool relative = true;                    // false: the published absolute L1 distance
  int32_t pool = 0;                        // tokens per mean; 0 = one mean of all, as published
  int32_t retest = 8;                      // carry: steps between selections; 0 = never again
  bool operator==(const Refresh&) const = default;
};

struct SkipRule {
  SkipKind kind = SkipKind::none;
  std::vector<float> param;  // 1 value or one per head; meaning in attend_params.h
  std::vector<float> kappa;  // recall only, 1 value or one per head; empty = 1
  // running_max only: the kernel gets param / k_len, at most 1 (BLASST: lambda = a / L).
  bool per_key = false;
  bool operator==(const SkipRule&) const = default;
};

// What becomes of the keys in dropped blocks; see compensate.h.
enum class Compensation : uint8_t {
  none,
  pooled_row,    // every query row attends to the mean key of each dropped block
  pooled_block,  // the mean query of a query block does, for all its rows
};

// What to do at the sites a rule matches.
struct Plan {
  const Method* method = nullptr;  // null = dense
  Params params;
  Refresh refresh;
  SkipRule skip;
  Compensation compensate = Compensation::none;
  std::shared_ptr<const Selection> fixed;  // masks of all heads, for the method `fixed`
};

// Throws Error when the choices of a plan do not fit together.
void check_plan(const Plan& plan);
// Throws Error unless a run of so many steps has all those at which it selects.
void check_steps(const Plan& plan, int num_steps);

// Half-open ranges; an empty list of layers matches every layer.
struct SiteMatch {
  int step_begin = 0, step_end = 1 << 30;
  float sigma_min = 0.0f, sigma_max = std::numeric_limits<float>::max();
  std::vector<int> layers;
  std::optional<Branch> branch;
  std::optional<int> expert;
  int64_t max_tokens = std::numeric_limits<int64_t>::max();  // longest sequence that matches
  bool matches(const Site& site, int64_t seq_len) const;
  bool operator==(const SiteMatch&) const = default;
};

struct Rule {
  SiteMatch match;
  Plan plan;
  std::string
      reason;  // shown by the trace when the plan is dense: "dense-steps", "min-tokens", ...
};

// Whether every call selects for all heads: no selection outlives its call.
inline bool selects_anew(const Plan& plan) {
  return plan.refresh.kind == RefreshKind::every_step;
}

// Why a call under this rule that ran dense did so: the rule's reason, else "plan" when the rule
// has no method and "method" when the method gave no mask.
std::string dense_reason(const Rule& rule);

// Ordered rules, first match wins; no match = dense ("no rule").
class Policy {
 public:
  // Throws Error as check_plan does.
  void add(Rule rule);
  // The reference lives as long as the policy is not changed.
  const Rule& at(const Site& site, int64_t seq_len = std::numeric_limits<int64_t>::max()) const;
  const std::vector<Rule>& rules() const { return rules_; }
  // Place of a rule that at() returned; -1 when none matched.
  int index(const Rule& rule) const;
  // Whether attention under any rule may put tokens in another order (Method::moves_tokens).
  bool moves_tokens() const;
  // Whether attention under any rule makes a second output of means, to be merged with the first.
  bool compensates() const;
  // True when masks or method states live from step to step, so that a run cannot go on without
  // them.
  bool carries() const;
  // The policy of heads [begin, end) of `num_heads` alone. Throws Error where a method decides
  // about all heads at once at steps that differ from head to head (Method::weighs_heads, drift).
  Policy of_heads(int64_t begin, int64_t end, int64_t num_heads) const;
  // Bytes that an engine holds from call to call when it has run at all of `sites`: selections,
  // method states and drift anchors, a second time where the policy carries them (Engine::save),
  // the masks that rules were given, and one selection where every call makes its own.
  int64_t held_bytes(std::span<const Site> sites, const SiteSizes& sizes) const;

 private:
  std::vector<Rule> rules_;
};

// Parses `xattention:top_p=0.9,stride=16,refresh=drift,delta=0.1`: a method, its parameters
// (checked against ParamSpec) and a refresh rule. refresh is every_step, never, drift (with delta,
// gate_low, gate_high, relative, pool), carry (with retest; needs a skip rule) or at_steps (with
// at=10+30 or at=0-9+30). Without it a method whose mask needs no data is selected once, any other
// at every step. compensate=pooled_row or pooled_block adds dropped blocks back as means. Throws
// Error naming what was given and what is known.
Plan parse_plan(std::string_view method_spec);
// Parses `none`, `running_max:lambda=0.01`, `running_lse:lambda=-6`, `recall:r=0.95,kappa=0.5`, and
// BLASST's calibrated forms `running_max:a=1000` (lambda = a / keys) and
// `running_max:a=315,b=6.2,sparsity=0.75` (lambda = a exp(b sparsity) / keys).
SkipRule parse_skip(std::string_view spec);
// `0-9,12` -> {0,...,9,12}. Throws Error on anything else.
std::vector<int> parse_index_list(std::string_view text);

// The policy of a command line: dense at dense_steps ("" none, "10" the first ten, "0-4,49" these),
// dense in dense_layers ("" none, "0,39" these), dense below min_tokens tokens, `plan` with `skip`
// elsewhere. Reasons: "dense-steps", "dense-layers", "min-tokens". Skip rules run in sparse sites
// only. Throws Error when a step is not below num_steps.
Policy make_policy(const Plan& plan, const SkipRule& skip, std::string_view dense_steps,
                   std::string_view dense_layers, int64_t min_tokens, int num_steps);

// Names, parameters and origin of the rules beside the method, for parsers and docs.
struct RefreshInfo {
  RefreshKind kind;
  std::string_view name, summary;
  std::span<const ParamSpec> specs;
  int formula;  // version, as Method::formula
};
struct SkipInfo {
  SkipKind kind;
  std::string_view name, summary;
  std::span<const ParamSpec> specs;  // what make_skip takes
  int formula;
};
struct CompensationInfo {
  Compensation kind;
  std::string_view name, summary;
  std::span<const ParamSpec> specs;  // none so far
  int formula;
};
std::span<const RefreshInfo> all_refresh_rules();
std::span<const SkipInfo> all_skip_rules();
std::span<const CompensationInfo> all_compensations();
const RefreshInfo& refresh_info(RefreshKind kind);
const SkipInfo& skip_info(SkipKind kind);
const CompensationInfo& compensation_info(Compensation kind);
// Throw Error listing the names when unknown.
const RefreshInfo& find_refresh(std::string_view name);
const SkipInfo& find_skip(std::string_view name);
const CompensationInfo& find_compensation(std::string_view name);
// Rules from values of their specs. Throw Error when values do not fit together.
Refresh make_refresh(RefreshKind kind, const Params& params, std::vector<int> steps);
SkipRule make_skip(SkipKind kind, const Params& params);
// The other way: values that make_skip turns into `rule` again. Names live forever, values as long
// as the rule.
struct SkipValue {
  std::string_view name;
  std::span<const float> values;  // 1, or one per head
};
std::vector<SkipValue> skip_values(const SkipRule& rule);

}  // namespace lacuna
