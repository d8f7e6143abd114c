// SPDX-License-Identifier: Apache-2.0
#include "lacuna/report/doctor.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <tuple>
#include <utility>

#include "lacuna/core/error.h"

namespace lacuna {

namespace {

constexpr double kWorth = 1.02;         // a smaller speed-up than this is noise
constexpr double kFullDensity = 0.999;  // density from which a mask counts as full

double mean_or_zero(const std::vector<double>& values) {
  double sum = 0.0;
  for (const double value : values) sum += value;
  return values.empty() ? 0.0 : sum / static_cast<double>(values.size());
}

// [begin, end) of the steps nearest to `step` among those examined of its expert and layer.
std::pair<int, int> range_around(const std::vector<Finding>& findings, const Finding& of,
                                 int num_steps) {
  int before = -1, after = -1;
  for (const Finding& f : findings) {
    if (f.expert != of.expert || f.layer != of.layer) continue;
    if (f.step < of.step) before = std::max(before, f.step);
    if (f.step > of.step) after = after < 0 ? f.step : std::min(after, f.step);
  }
  return {before < 0 ? 0 : (before + of.step) / 2 + 1,
          after < 0 ? num_steps : (of.step + after) / 2 + 1};
}

// Which network runs each step, as far as calls tell.
std::vector<int> nearest_experts(const std::vector<Finding>& findings, int num_steps) {
  std::vector<int> experts;
  for (int step = 0; step < num_steps; ++step)
    experts.push_back(std::min_element(findings.begin(), findings.end(),
                                       [step](const Finding& a, const Finding& b) {
                                         return std::abs(a.step - step) < std::abs(b.step - step);
                                       })
                          ->expert);
  return experts;
}

// What the heads of one layer get; `why` stays empty when the layer can be sparse.
void decide_heads(const Finding& finding, const Examined& examined, const MeasuredCost& cost,
                  double break_even, Decision& d) {
  const ReplayCase::Knob& knob = *examined.wanted.knob;
  const bool dense_heads = cost.full_density >= kFullDensity;
  double lost = 0.0, size = 0.0, needed = 0.0;
  int over = 0, unreached = 0;
  for (const HeadNeed& head : finding.heads) {
    const bool too_dense = !head.reached || head.density > break_even;
    over += too_dense ? 1 : 0;
    unreached += head.reached ? 0 : 1;
    const bool dense = !head.reached || (too_dense && dense_heads);
    d.values.push_back(dense ? knob.full : knob.sparse + head.fullness * (knob.full - knob.sparse));
    d.head_density.push_back(dense ? 1.0 : head.density);
    lost += dense ? 0.0 : head.loss * head.weight;
    size += head.weight;
    needed += head.reached ? head.density : 1.0;
  }
  const size_t heads = finding.heads.size();
  d.needed = needed / static_cast<double>(heads);
  d.density = mean_or_zero(d.head_density);
  d.loss = size > 0.0 ? lost / size : 0.0;
  d.sparse_ms = cost.model.sparse_ms(d.head_density);
  if (unreached > 0 && !dense_heads) {
    d.why = fmt::format("{} of {} heads lose more at any density", unreached, heads);
  } else if (over == static_cast<int>(heads)) {
    d.why = "every head needs more than break-even";
  } else if (d.sparse_ms >= cost.model.dense_ms()) {
    d.why = "not faster with its selection";
  }
}

// Sums over all steps and layers of a generation.
struct Expected {
  double sparse_ms = 0.0, dense_ms = 0.0, density = 0.0;
};

const Decision* decision_at(const std::vector<Decision>& decisions, const Schedule& schedule,
                            int step, int layer) {
  const auto at = static_cast<size_t>(step);
  if (!schedule.dense.empty() && schedule.dense[at]) return nullptr;
  for (const Decision& d : decisions) {
    const bool expert = schedule.experts.empty() || schedule.experts[at] == d.expert;
    if (expert && d.layer == layer && step >= d.step_begin && step < d.step_end)
      return d.sparse ? &d : nullptr;
  }
  return nullptr;
}

Expected expect(const std::vector<Decision>& decisions, const Schedule& schedule, double dense_ms) {
  Expected sum;
  double sites = 0.0;
  for (int step = 0; step < schedule.num_steps; ++step)
    for (const int layer : schedule.layers) {
      const Decision* d = decision_at(decisions, schedule, step, layer);
      sum.dense_ms += dense_ms;
      sum.sparse_ms += d != nullptr ? d->sparse_ms : dense_ms;
      sum.density += d != nullptr ? d->density : 1.0;
      sites += 1.0;
    }
  sum.density = sites > 0.0 ? sum.density / sites : 1.0;
  return sum;
}

double needed_density(const Diagnosis& d) {
  std::vector<double> all;
  for (const Decision& decision : d.decisions) all.push_back(decision.needed);
  return mean_or_zero(all);
}

}  // namespace

Diagnosis diagnose(const Examined& examined, const MeasuredCost& cost, int64_t tokens,
                   Schedule schedule, std::optional<double> attention_share) {
  const std::vector<Finding>& findings = examined.findings;
  LACUNA_CHECK(!findings.empty() && schedule.num_steps > 0,
               "doctor: {} calls of {} steps, expected 1 or more", findings.size(),
               schedule.num_steps);
  Diagnosis result;
  result.method = examined.wanted.name;
  result.target = examined.loss;
  result.tokens = tokens;
  result.attention_share = attention_share;
  result.layers = static_cast<int>(schedule.layers.size());
  result.num_layers = schedule.num_layers > 0 ? schedule.num_layers : result.layers;
  if (schedule.experts.empty()) schedule.experts = nearest_experts(findings, schedule.num_steps);
  // A rule found in one network is not for the other, examined or not.
  result.experts = std::any_of(schedule.experts.begin(), schedule.experts.end(),
                               [](int expert) { return expert > 0; });
  const double break_even = cost.model.break_even();
  for (const Finding& finding : findings) {
    Decision d;
    d.expert = finding.expert;
    d.layer = finding.layer;
    std::tie(d.step_begin, d.step_end) = range_around(findings, finding, schedule.num_steps);
    decide_heads(finding, examined, cost, break_even, d);
    d.sparse = d.why.empty();
    result.decisions.push_back(std::move(d));
  }
  std::sort(result.decisions.begin(), result.decisions.end(),
            [](const Decision& a, const Decision& b) {
              return std::tie(a.expert, a.layer, a.step_begin) <
                     std::tie(b.expert, b.layer, b.step_begin);
            });
  const auto predict = [&] {
    const Expected sum = expect(result.decisions, schedule, cost.model.dense_ms());
    result.attention_speedup = sum.sparse_ms > 0.0 ? sum.dense_ms / sum.sparse_ms : 1.0;
    result.density = sum.density;
    if (attention_share)
      result.step_speedup =
          1.0 / (1.0 - *attention_share + *attention_share / result.attention_speedup);
  };
  predict();
  result.pays = result.step_speedup.value_or(result.attention_speedup) >= kWorth;
  if (!result.pays) {
    for (Decision& d : result.decisions)
      if (d.sparse) d.sparse = false, d.why = "too little to gain";
    predict();
  }
  return result;
}

std::string verdict(const Diagnosis& d, const MeasuredCost& cost) {
  const double break_even = cost.model.break_even();
  if (d.pays) {
    const auto sparse = std::count_if(d.decisions.begin(), d.decisions.end(),
                                      [](const Decision& x) { return x.sparse; });
    // Nothing is known of layers that were not recorded: what is said must not seem to hold there.
    const bool part = d.layers < d.num_layers;
    const std::string where =
        part ? fmt::format("the recorded layers ({} of {})", d.layers, d.num_layers)
             : "the whole run";
    std::string text = fmt::format(
        "Sparse attention pays here: {} in {} of {} examined layers and steps, mean density {:.2f} "
        "over {}, with rel_l1 at most {:.3g} in every head. Expected: attention {:.2f}x{}",
        d.method, sparse, d.decisions.size(), d.density, where, d.target, d.attention_speedup,
        part ? " in these layers" : "");
    if (d.step_speedup)
      text += fmt::format(", a whole step {:.2f}x (attention is {:.0f} % of it)", *d.step_speedup,
                          100.0 * *d.attention_share);
    return text + ".";
  }
  std::string why;
  if (break_even == 0.0) {
    const CostModel::Point& least = cost.model.points().front();
    why = fmt::format(
        "at {} tokens {} takes {:.3g} ms with its selection at density {:.2f}, dense {:.3g} ms",
        d.tokens, d.method, cost.model.select_ms() + least.ms, least.density,
        cost.model.dense_ms());
  } else if (needed_density(d) >= break_even) {
    why = fmt::format(
        "its heads need density {:.2f} on average for rel_l1 {:.3g}, and {} is faster than dense "
        "only below {:.2f} on this machine",
        needed_density(d), d.target, d.method, break_even);
  } else {
    why =
        fmt::format("the expected gain of {} is below {:.0f} %", d.method, 100.0 * (kWorth - 1.0));
  }
  return fmt::format("Sparse attention does not pay here: {}. Dense attention is the choice.", why);
}

Profile doctor_profile(const Diagnosis& d, const Examined& examined, const ProfileTarget& target,
                       std::vector<ProfileRule> dense) {
  Profile profile;
  profile.target = target;
  const ReplayCase& wanted = examined.wanted;
  for (const Decision& decision : d.decisions) {
    if (!decision.sparse) continue;
    ProfileRule item;
    SiteMatch& match = item.rule.match;
    match.step_begin = decision.step_begin;
    match.step_end = decision.step_end;
    match.layers = {decision.layer};
    if (d.experts) match.expert = decision.expert;
    item.rule.plan = wanted.plan;
    item.rule.plan.params.set_per_head(wanted.knob->parameter, decision.values);
    item.density = decision.density;
    profile.rules.push_back(std::move(item));
  }
  if (!profile.rules.empty())
    profile.rules.insert(profile.rules.begin(), dense.begin(), dense.end());
  // All else was chosen to be dense: a strict run wants a rule that says so.
  profile.rules.emplace_back().rule.reason = "doctor";
  return profile;
}

}  // namespace lacuna
