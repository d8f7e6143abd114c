// SPDX-License-Identifier: Apache-2.0
#include "lacuna/engine/policy.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <map>
#include <numeric>
#include <set>
#include <tuple>

#include "lacuna/core/error.h"
#include "lacuna/engine/refresh.h"
#include "lacuna/methods/selection.h"

namespace lacuna {

namespace {

constexpr ParamSpec kDriftSpecs[] = {
    {"delta", 0.1, 0.0, 1e9, false, "bound on the drift; published: 30 with relative=0"},
    {"gate_low", 0.4, 0.0, 1.0, false, "below this share of drifted heads the layer reuses"},
    {"gate_high", 0.8, 0.0, 1.0, false, "above this share of drifted heads all are selected"},
    {"relative", 1, 0, 1, true, "1 divides by the norm at the last selection; 0 as published"},
    {"pool", 0, 0, 1000000, true, "tokens per mean; 0 = one mean of all tokens, as published"},
};
constexpr ParamSpec kCarrySpecs[] = {
    {"retest", 8, 0, 1000000, true, "steps until everything is listed again; 0 = never"},
};
constexpr RefreshInfo kRefreshRules[] = {
    {RefreshKind::every_step, "every_step", "Selects in every step", {}, 1},
    {RefreshKind::at_steps,
     "at_steps",
     "Selects at the steps in `at`: `at=10+30`, or as shares, `at=18%+58%` (AdaSpa)",
     {},
     1},
    {RefreshKind::drift, "drift",
     "Selects a head when its pooled q and k moved (HASTE Temporal Mask Reuse, arXiv 2605.14513)",
     kDriftSpecs, 1},
    {RefreshKind::never, "never", "Selects once, at the first sparse step", {}, 1},
    {RefreshKind::carry, "carry",
     "Lists what the skip rule kept in the step before (LiteAttention, arXiv 2511.11062)",
     kCarrySpecs, 1},
};

// Bounds of skip parameters are floats, so that a value at the bound survives rounding.
constexpr ParamSpec kRunningMaxSpecs[] = {
    {"lambda", 0.01, 0.0, 1.0, false, "skips when tile max - running max < ln(lambda)"},
    {"a", 0.0, 0.0, 1e9, false, "above 0: lambda = a exp(b sparsity) / keys instead, at most 1"},
    {"b", 0.0, -100.0, 100.0, false, "fitted growth of ln(lambda) with the sparsity"},
    {"sparsity", 0.0, 0.0, 1.0, false, "target share of skipped tiles, for b"},
};
constexpr ParamSpec kRunningLseSpecs[] = {
    {"lambda", -6.0, -60.0, 20.0, false, "skips when tile max - running LSE < lambda"}};
constexpr ParamSpec kRecallSpecs[] = {
    {"r", 0.95, 0x1p-10, 1.0, false, "softmax mass each row keeps at least"},
    {"kappa", 1.0, 0x1p-20, 1.0, false, "tile mass / (keys * exp(tile max)); 1 certifies r"},
};
constexpr SkipInfo kSkipRules[] = {
    {SkipKind::none, "none", "Drops nothing", {}, 1},
    {SkipKind::running_max, "running_max", "BLASST (arXiv 2512.12087)", kRunningMaxSpecs, 1},
    {SkipKind::running_lse, "running_lse", "Cumulative energy filtering (arXiv 2606.16317, eq. 5)",
     kRunningLseSpecs, 1},
    {SkipKind::recall, "recall", "Keeps mass r on every row, certified for kappa = 1", kRecallSpecs,
     1},
};

constexpr CompensationInfo kCompensations[] = {
    {Compensation::none, "none", "Dropped blocks count for nothing", {}, 1},
    {Compensation::pooled_row,
     "pooled_row",
     "Each query row attends to the mean key and value of every dropped block",
     {},
     1},
    {Compensation::pooled_block,
     "pooled_block",
     "The mean query of each query block does, once for all its rows",
     {},
     1},
};

template <typename Info>
std::string names_of(std::span<const Info> infos) {
  std::string names;
  for (const Info& info : infos) {
    names += names.empty() ? "" : ", ";
    names += info.name;
  }
  return names;
}

double parse_number(std::string_view who, std::string_view text) {
  double value = 0.0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  LACUNA_CHECK(error == std::errc() && end == text.data() + text.size(),
               "{}: '{}', expected a number", who, text);
  return value;
}

int parse_index(std::string_view text) {
  int value = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  LACUNA_CHECK(error == std::errc() && end == text.data() + text.size() && value >= 0 &&
                   value < kMaxIndex && text.front() != '-',
               "index list: '{}', expected whole numbers from 0 to {}", text, kMaxIndex - 1);
  return value;
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  while (true) {
    const size_t at = text.find(separator);
    parts.push_back(text.substr(0, at));
    if (at == std::string_view::npos) return parts;
    text.remove_prefix(at + 1);
  }
}

struct KeyValue {
  std::string_view key, value;
};

// `name:key=value,key=value`; each key once.
struct Spec {
  std::string_view name;
  std::vector<KeyValue> pairs;
};

Spec parse_spec(std::string_view who, std::string_view text) {
  Spec spec;
  const size_t colon = text.find(':');
  spec.name = text.substr(0, colon);
  if (colon == std::string_view::npos) return spec;
  for (std::string_view part : split(text.substr(colon + 1), ',')) {
    const size_t equals = part.find('=');
    LACUNA_CHECK(equals != std::string_view::npos && equals > 0,
                 "{}: '{}' in '{}', expected key=value", who, part, text);
    const KeyValue pair{part.substr(0, equals), part.substr(equals + 1)};
    for (const KeyValue& seen : spec.pairs)
      LACUNA_CHECK(seen.key != pair.key, "{}: '{}' twice in '{}', expected once", who, pair.key,
                   text);
    spec.pairs.push_back(pair);
  }
  return spec;
}

bool has_spec(std::span<const ParamSpec> specs, std::string_view name) {
  return std::any_of(specs.begin(), specs.end(),
                     [&](const ParamSpec& s) { return s.name == name; });
}

// Takes the refresh keys out of `pairs`; what is left belongs to the method.
Refresh take_refresh(std::vector<KeyValue>& pairs, RefreshKind default_kind) {
  RefreshKind kind = default_kind;
  for (const KeyValue& pair : pairs)
    if (pair.key == "refresh") kind = find_refresh(pair.value).kind;
  std::erase_if(pairs, [](const KeyValue& pair) { return pair.key == "refresh"; });
  const RefreshInfo& info = refresh_info(kind);
  Params params(info.specs);
  std::vector<int> steps;
  std::erase_if(pairs, [&](const KeyValue& pair) {
    if (kind == RefreshKind::at_steps && pair.key == "at") {
      std::string list(pair.value);
      std::replace(list.begin(), list.end(), '+', ',');
      steps = parse_index_list(list);
      return true;
    }
    if (!has_spec(info.specs, pair.key)) return false;
    params.set(pair.key, parse_number(pair.key, pair.value));
    return true;
  });
  return make_refresh(kind, params, std::move(steps));
}

std::vector<float> floats_of(const Params& params, std::string_view name) {
  const auto values = params.values(name);
  return {values.begin(), values.end()};
}

// a exp(b sparsity): lambda times the number of keys, per head where one of the three is. Empty
// when `a` is not in use.
std::vector<float> running_max_factors(const Params& params) {
  size_t heads = 1;
  for (const char* name : {"a", "b", "sparsity"})
    heads = std::max(heads, params.values(name).size());
  std::vector<float> factors(heads);
  bool used = false;
  for (size_t h = 0; h < heads; ++h) {
    const auto value = [&](const char* name) { return params.get(name, static_cast<int64_t>(h)); };
    LACUNA_CHECK(value("a") > 0.0 || (value("b") == 0.0 && value("sparsity") == 0.0),
                 "running_max: b or sparsity without a, expected a, b and sparsity");
    const double factor = value("a") * std::exp(value("b") * value("sparsity"));
    LACUNA_CHECK(factor <= kRunningMaxSpecs[1].max,
                 "running_max: a exp(b sparsity) is {}, expected at most {}", factor,
                 kRunningMaxSpecs[1].max);
    factors[h] = static_cast<float>(factor);
    used = used || factor > 0.0;
  }
  if (!used) factors.clear();
  return factors;
}

Compensation take_compensation(std::vector<KeyValue>& pairs) {
  Compensation kind = Compensation::none;
  for (const KeyValue& pair : pairs)
    if (pair.key == "compensate") kind = find_compensation(pair.value).kind;
  std::erase_if(pairs, [](const KeyValue& pair) { return pair.key == "compensate"; });
  return kind;
}

Rule dense_rule(std::string reason) {
  Rule rule;
  rule.reason = std::move(reason);
  return rule;
}

}  // namespace

std::span<const RefreshInfo> all_refresh_rules() {
  return kRefreshRules;
}
std::span<const SkipInfo> all_skip_rules() {
  return kSkipRules;
}
std::span<const CompensationInfo> all_compensations() {
  return kCompensations;
}
const RefreshInfo& refresh_info(RefreshKind kind) {
  return kRefreshRules[static_cast<size_t>(kind)];
}
const SkipInfo& skip_info(SkipKind kind) {
  return kSkipRules[static_cast<size_t>(kind)];
}

const CompensationInfo& compensation_info(Compensation kind) {
  return kCompensations[static_cast<size_t>(kind)];
}

const RefreshInfo& find_refresh(std::string_view name) {
  for (const RefreshInfo& info : kRefreshRules)
    if (info.name == name) return info;
  fail("refresh: '{}', expected one of {}", name, names_of(all_refresh_rules()));
}

const SkipInfo& find_skip(std::string_view name) {
  for (const SkipInfo& info : kSkipRules)
    if (info.name == name) return info;
  fail("skip: '{}', expected one of {}", name, names_of(all_skip_rules()));
}

const CompensationInfo& find_compensation(std::string_view name) {
  for (const CompensationInfo& info : kCompensations)
    if (info.name == name) return info;
  fail("compensate: '{}', expected one of {}", name, names_of(all_compensations()));
}

Refresh make_refresh(RefreshKind kind, const Params& params, std::vector<int> steps) {
  Refresh refresh;
  refresh.kind = kind;
  refresh.steps = std::move(steps);
  if (kind == RefreshKind::at_steps)
    LACUNA_CHECK(!refresh.steps.empty(), "refresh: at_steps without steps, expected e.g. at=10+30");
  if (kind == RefreshKind::carry) refresh.retest = static_cast<int32_t>(params.get_int("retest"));
  if (kind == RefreshKind::drift) {
    refresh.delta = params.get("delta");
    refresh.gate_low = params.get("gate_low");
    refresh.gate_high = params.get("gate_high");
    refresh.relative = params.get_int("relative") != 0;
    refresh.pool = static_cast<int32_t>(params.get_int("pool"));
    LACUNA_CHECK(refresh.gate_low <= refresh.gate_high,
                 "refresh: gate_low {}, expected at most gate_high {}", refresh.gate_low,
                 refresh.gate_high);
  }
  return refresh;
}

SkipRule make_skip(SkipKind kind, const Params& params) {
  SkipRule rule;
  rule.kind = kind;
  switch (kind) {
    case SkipKind::none:
      break;
    case SkipKind::running_max: {
      std::vector<float> factors = running_max_factors(params);
      rule.per_key = !factors.empty();
      LACUNA_CHECK(!rule.per_key || (!params.per_head("lambda") &&
                                     params.get("lambda") == kRunningMaxSpecs[0].default_value),
                   "running_max: lambda and a, expected one of them");
      rule.param = rule.per_key ? std::move(factors) : floats_of(params, "lambda");
      break;
    }
    case SkipKind::running_lse:
      rule.param = floats_of(params, "lambda");
      break;
    case SkipKind::recall:
      rule.param = floats_of(params, "r");
      rule.kappa = floats_of(params, "kappa");
      break;
  }
  return rule;
}

std::vector<SkipValue> skip_values(const SkipRule& rule) {
  switch (rule.kind) {
    case SkipKind::none:
      break;
    case SkipKind::running_max:
      return {{rule.per_key ? "a" : "lambda", rule.param}};
    case SkipKind::running_lse:
      return {{"lambda", rule.param}};
    case SkipKind::recall:
      if (rule.kappa.empty()) return {{"r", rule.param}};
      return {{"r", rule.param}, {"kappa", rule.kappa}};
  }
  return {};
}

bool SiteMatch::matches(const Site& site, int64_t seq_len) const {
  return site.step >= step_begin && site.step < step_end && site.sigma >= sigma_min &&
         site.sigma < sigma_max && seq_len <= max_tokens &&
         (layers.empty() || std::find(layers.begin(), layers.end(), site.layer) != layers.end()) &&
         (!branch || *branch == site.branch) && (!expert || *expert == site.expert);
}

void check_plan(const Plan& plan) {
  LACUNA_CHECK(plan.method == nullptr || plan.refresh.kind != RefreshKind::carry ||
                   plan.skip.kind != SkipKind::none,
               "refresh: carry without a skip rule, expected one of {}",
               names_of(all_skip_rules().subspan(1)));  // the first is none
}

void check_steps(const Plan& plan, int num_steps) {
  if (plan.method == nullptr || plan.refresh.kind != RefreshKind::at_steps) return;
  LACUNA_CHECK(plan.refresh.steps.back() < num_steps, "at: {}, expected steps below {}",
               plan.refresh.steps.back(), num_steps);
}

void Policy::add(Rule rule) {
  check_plan(rule.plan);
  rules_.push_back(std::move(rule));
}

const Rule& Policy::at(const Site& site, int64_t seq_len) const {
  static const Rule no_rule = dense_rule("no rule");
  for (const Rule& rule : rules_)
    if (rule.match.matches(site, seq_len)) return rule;
  return no_rule;
}

int Policy::index(const Rule& rule) const {
  for (size_t i = 0; i < rules_.size(); ++i)
    if (&rules_[i] == &rule) return static_cast<int>(i);
  return -1;
}

bool Policy::moves_tokens() const {
  return std::any_of(rules_.begin(), rules_.end(), [](const Rule& rule) {
    const Plan& plan = rule.plan;
    if (plan.method == nullptr) return false;
    const Selection* given = plan.fixed.get();
    return plan.method->moves_tokens(plan.params) ||
           (given != nullptr &&
            !(given->q_order.empty() && given->k_order.empty() && given->row_source.empty()));
  });
}

bool Policy::compensates() const {
  return std::any_of(rules_.begin(), rules_.end(), [](const Rule& rule) {
    return rule.plan.method != nullptr && rule.plan.compensate != Compensation::none;
  });
}

bool Policy::carries() const {
  return std::any_of(rules_.begin(), rules_.end(), [](const Rule& rule) {
    const Method* method = rule.plan.method;
    const RefreshKind refresh = rule.plan.refresh.kind;
    return method != nullptr && (refresh == RefreshKind::carry || method->make_state() != nullptr ||
                                 (!method->static_mask() && !selects_anew(rule.plan)));
  });
}

Policy Policy::of_heads(int64_t begin, int64_t end, int64_t num_heads) const {
  std::vector<int32_t> heads(static_cast<size_t>(end - begin));
  std::iota(heads.begin(), heads.end(), static_cast<int32_t>(begin));
  const auto take = [&](std::vector<float>& values) {
    if (values.size() <= 1) return;
    LACUNA_CHECK(static_cast<int64_t>(values.size()) == num_heads,
                 "skip: {} values, expected 1 or {}", values.size(), num_heads);
    values = std::vector<float>(values.begin() + begin, values.begin() + end);
  };
  Policy taken;
  for (Rule rule : rules_) {
    Plan& plan = rule.plan;
    LACUNA_CHECK(plan.method == nullptr || plan.refresh.kind != RefreshKind::drift ||
                     !plan.method->weighs_heads(plan.params),
                 "policy: {} weighs heads against each other, which with refresh=drift do not "
                 "select at the same steps; expected another refresh rule, or one process",
                 plan.method->name());
    plan.params = plan.params.of_heads(begin, end, num_heads);
    take(plan.skip.param);
    take(plan.skip.kappa);
    if (plan.fixed != nullptr)
      plan.fixed = std::make_shared<const Selection>(pick_heads(*plan.fixed, heads));
    taken.rules_.push_back(std::move(rule));
  }
  return taken;
}

int64_t Policy::held_bytes(std::span<const Site> sites, const SiteSizes& sizes) const {
  std::vector<int64_t> of_rule;    // at each site
  std::vector<int64_t> momentary;  // at one site at a time
  std::set<const Selection*> given;
  int64_t total = 0;
  for (const Rule& rule : rules_) {
    const Plan& plan = rule.plan;
    const bool drops = plan.refresh.kind == RefreshKind::carry;
    of_rule.push_back(0);
    momentary.push_back(0);
    if (plan.method != nullptr) {
      const HoldArgs args{sizes, plan.params, plan.fixed.get(), drops};
      const int64_t all = plan.method->held_bytes(args);
      const int64_t kept = selects_anew(plan) ? plan.method->state_bytes(args) : all;
      of_rule.back() = kept + anchor_bytes(plan.refresh, sizes);
      momentary.back() = all - kept;
    }
    if (plan.fixed != nullptr && given.insert(plan.fixed.get()).second)
      total += selection_bytes(*plan.fixed);
  }
  // A site holds what its last sparse rule left.
  std::map<std::tuple<int, Branch, int>, int64_t> most;
  int64_t most_momentary = 0;
  for (const Site& site : sites) {
    const int rule = index(at(site, sizes.seq_len()));
    if (rule < 0) continue;
    int64_t& bytes = most[{site.layer, site.branch, site.expert}];
    bytes = std::max(bytes, of_rule[static_cast<size_t>(rule)]);
    most_momentary = std::max(most_momentary, momentary[static_cast<size_t>(rule)]);
  }
  const int64_t copies = carries() ? 2 : 1;
  for (const auto& [site, bytes] : most) total += copies * bytes;
  return total + most_momentary;
}

std::string dense_reason(const Rule& rule) {
  if (!rule.reason.empty()) return rule.reason;
  return rule.plan.method == nullptr ? "plan" : "method";
}

std::vector<int> parse_index_list(std::string_view text) {
  std::vector<int> indices;
  for (std::string_view part : split(text, ',')) {
    LACUNA_CHECK(!part.empty(), "index list: '{}', expected e.g. 0-9,12", text);
    const size_t dash = part.find('-', 1);
    const int first = parse_index(part.substr(0, dash));
    int last = first;
    if (dash != std::string_view::npos) {
      LACUNA_CHECK(dash + 1 < part.size(), "index list: '{}', expected e.g. 0-9,12", text);
      last = parse_index(part.substr(dash + 1));
    }
    LACUNA_CHECK(first <= last, "index list: '{}', expected a rising range", part);
    for (int i = first; i <= last; ++i) indices.push_back(i);
  }
  std::sort(indices.begin(), indices.end());
  indices.erase(std::unique(indices.begin(), indices.end()), indices.end());
  return indices;
}

Plan parse_plan(std::string_view method_spec) {
  Spec spec = parse_spec("method", method_spec);
  Plan plan;
  const Method& method = find_method(spec.name);
  plan.refresh =
      take_refresh(spec.pairs, method.static_mask() ? RefreshKind::never : RefreshKind::every_step);
  plan.compensate = take_compensation(spec.pairs);
  plan.params = Params(method.specs());
  for (const KeyValue& pair : spec.pairs)
    plan.params.set(pair.key, parse_number(pair.key, pair.value));
  method.check(plan.params);
  plan.method = &method;
  return plan;
}

SkipRule parse_skip(std::string_view text) {
  const Spec spec = parse_spec("skip", text);
  const SkipInfo& info = find_skip(spec.name);
  Params params(info.specs);
  for (const KeyValue& pair : spec.pairs) params.set(pair.key, parse_number(pair.key, pair.value));
  return make_skip(info.kind, params);
}

Policy make_policy(const Plan& plan, const SkipRule& skip, std::string_view dense_steps,
                   std::string_view dense_layers, int64_t min_tokens, int num_steps) {
  check_steps(plan, num_steps);
  Policy policy;
  if (!dense_steps.empty()) {
    const bool count = dense_steps.find_first_of(",-") == std::string_view::npos;
    std::vector<int> steps = parse_index_list(dense_steps);
    const int highest = count ? steps.back() - 1 : steps.back();
    LACUNA_CHECK(highest < num_steps, "dense-steps: {}, expected steps below {}", dense_steps,
                 num_steps);
    if (count) {
      const int first_steps = steps.back();
      steps.clear();
      for (int step = 0; step < first_steps; ++step) steps.push_back(step);
    }
    for (size_t i = 0; i < steps.size();) {
      size_t end = i + 1;
      while (end < steps.size() && steps[end] == steps[end - 1] + 1) ++end;
      Rule rule = dense_rule("dense-steps");
      rule.match.step_begin = steps[i];
      rule.match.step_end = steps[end - 1] + 1;
      policy.add(std::move(rule));
      i = end;
    }
  }
  if (!dense_layers.empty()) {
    Rule rule = dense_rule("dense-layers");
    rule.match.layers = parse_index_list(dense_layers);
    policy.add(std::move(rule));
  }
  if (min_tokens > 0) {
    Rule rule = dense_rule("min-tokens");
    rule.match.max_tokens = min_tokens - 1;
    policy.add(std::move(rule));
  }
  Rule rule;
  rule.plan = plan;
  rule.plan.skip = skip;
  policy.add(std::move(rule));
  return policy;
}

}  // namespace lacuna
