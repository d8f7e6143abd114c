// SPDX-License-Identifier: Apache-2.0
#include "lacuna/calibrate/replay.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "lacuna/core/convert.h"
#include "lacuna/core/error.h"
#include "lacuna/core/metrics.h"
#include "lacuna/engine/engine.h"

namespace lacuna {

namespace {

// What one case did on one call.
struct Outcome {
  Tensor out;
  std::vector<float> lse;
  double qk_density, pv_density, select_ms, attend_ms;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

Policy policy_of(const ReplayCase& wanted) {
  Rule rule;
  rule.plan = wanted.plan;
  Policy policy;
  policy.add(std::move(rule));
  return policy;
}

// Runs the case as if the call came again at the next steps: a method may look in the first and
// select in the second, so the third is what later steps are like. The time of a selection is that
// of the last call that made one.
Outcome attend_call(Backend& backend, const RecordedCall& call, const ReplayCase& wanted) {
  constexpr int kSteps = 3;
  const int64_t heads = call.q.shape[0], tokens = call.q.shape[1];
  Outcome outcome{Tensor(call.q.dtype, {heads, tokens, call.q.shape[2]}),
                  std::vector<float>(static_cast<size_t>(heads * tokens)),
                  1.0,
                  1.0,
                  0.0,
                  0.0};
  Engine engine(backend, policy_of(wanted));
  Site site = call.site;
  site.num_steps += kSteps;
  for (int i = 0; i < kSteps; ++i, ++site.step) {
    if (i + 1 == kSteps) engine.write_lse(outcome.lse);
    engine.attend(site, call.grid, call.text_tokens, call.q, call.k, call.v, outcome.out);
  }
  for (const TraceEntry& entry : engine.trace().entries()) {
    if (entry.heads_refreshed > 0) outcome.select_ms = entry.select_ms;
  }
  const TraceEntry& last = engine.trace().entries().back();
  outcome.qk_density = last.qk_density;
  outcome.pv_density = last.pv_density;
  outcome.attend_ms = last.attend_ms;
  return outcome;
}

// Mean over rows of the kept softmax mass.
double recall_of(std::span<const float> kept, std::span<const float> all) {
  double sum = 0.0;
  for (size_t i = 0; i < all.size(); ++i) sum += std::exp(double{kept[i]} - all[i]);
  return sum / static_cast<double>(all.size());
}

bool accepts(const ReplayCase& made, std::string_view name, double value) {
  Params params = made.plan.params;
  params.set(name, value);
  try {
    made.plan.method->check(params);
  } catch (const Error&) {
    return false;
  }
  return true;
}

ReplayCase::Knob method_knob(const ReplayCase& made, std::string_view name) {
  const auto specs = made.plan.method->specs();
  const auto spec =
      std::find_if(specs.begin(), specs.end(), [&](const ParamSpec& s) { return s.name == name; });
  LACUNA_CHECK(spec != specs.end(), "replay: {} has no parameter {}", made.plan.method->name(),
               name);
  double full = spec->max;  // a value in range may still clash with the other parameters
  while (full > spec->min && !accepts(made, name, full)) full *= 2.0 / 3.0;
  return {std::string(name), spec->min, full,
          [name](ReplayCase& other, double value) { other.plan.params.set(name, value); }};
}

// Skip rules keep more as their threshold falls, but recall, whose target is the mass kept.
std::optional<ReplayCase::Knob> skip_knob(SkipKind kind) {
  const auto set = [](auto transform) {
    return [transform](ReplayCase& other, double value) {
      other.plan.skip.param = {static_cast<float>(transform(value))};
    };
  };
  switch (kind) {
    case SkipKind::running_max:  // ln(lambda), so that steps are even
      return ReplayCase::Knob{"ln lambda", 0.0, -30.0, set([](double x) { return std::exp(x); })};
    case SkipKind::running_lse:
      return ReplayCase::Knob{"lambda", 20.0, -60.0, set([](double x) { return x; })};
    case SkipKind::recall:  // ln(1 - r)
      return ReplayCase::Knob{"ln 1-r", -0.01, -15.0,
                              set([](double x) { return 1.0 - std::exp(x); })};
    case SkipKind::none:
      break;
  }
  return {};
}

}  // namespace

ReplayCase replay_case(std::string_view attention, std::string_view skip) {
  ReplayCase made;
  made.name = attention == "dense" ? std::string(skip) : std::string(attention);
  if (attention != "dense" && skip != "none") made.name = fmt::format("{} + {}", attention, skip);
  made.plan = parse_plan(attention);
  made.plan.skip = parse_skip(skip);
  if (made.plan.skip.kind != SkipKind::none) {
    made.knob = skip_knob(made.plan.skip.kind);
  } else if (made.plan.method != nullptr && !made.plan.method->density_parameter().empty()) {
    made.knob = method_knob(made, made.plan.method->density_parameter());
  }
  return made;
}

Replay::Replay(Backend& backend, std::span<const RecordedCall> calls, int repeats)
    : backend_(backend), calls_(calls), repeats_(repeats) {
  LACUNA_CHECK(!calls.empty() && repeats >= 1, "replay: {} calls, {} repeats, expected 1 or more",
               calls.size(), repeats);
  const ReplayCase all = replay_case("dense", "none");
  for (const RecordedCall& call : calls) {
    const Tensor q = converted(call.q, DType::f32), k = converted(call.k, DType::f32),
                 v = converted(call.v, DType::f32);
    const RecordedCall wide{call.site, call.grid, call.text_tokens, q, k, v};
    Outcome outcome = attend_call(backend, wide, all);
    references_.push_back({std::move(outcome.out), std::move(outcome.lse)});
  }
  dense_ = measure(all, repeats);
  dense_.name = "dense";
  dense_.dense_ms = dense_.attend_ms;
}

ReplayRow Replay::measure(const ReplayCase& wanted, int repeats) {
  ReplayRow row;
  row.name = wanted.name;
  row.dense_ms = dense_.dense_ms;
  row.qk_density = row.pv_density = row.recall = 0.0;
  const auto n = static_cast<double>(calls_.size());
  for (size_t i = 0; i < calls_.size(); ++i) {
    std::vector<double> select, attend;
    Outcome outcome;
    for (int repeat = 0; repeat < repeats; ++repeat) {
      outcome = attend_call(backend_, calls_[i], wanted);
      select.push_back(outcome.select_ms);
      attend.push_back(outcome.attend_ms);
    }
    row.qk_density += outcome.qk_density / n;
    row.pv_density += outcome.pv_density / n;
    row.recall += recall_of(outcome.lse, references_[i].lse) / n;
    row.rel_l1 += compare(converted(outcome.out, DType::f32), references_[i].out).rel_l1 / n;
    row.select_ms += median(std::move(select)) / n;
    row.attend_ms += median(std::move(attend)) / n;
  }
  return row;
}

ReplayRow Replay::run(const ReplayCase& wanted) {
  return measure(wanted, repeats_);
}

// Bisection: `value` rises from the sparse end of the knob to the full end, or falls.
std::optional<ReplayRow> Replay::search(const ReplayCase& wanted, double target,
                                        const std::function<double(const ReplayRow&)>& value) {
  constexpr int kRounds = 12;
  constexpr double kClose = 0.01, kAccepted = 0.05;
  if (!wanted.knob) return {};
  double low = wanted.knob->sparse, high = wanted.knob->full;
  ReplayCase tried = wanted;
  const auto at = [&](double x) {
    wanted.knob->set(tried, x);
    return value(measure(tried, 1));
  };
  const bool rising = at(low) < at(high);
  double best = low, distance = HUGE_VAL;
  for (int round = 0; round < kRounds && distance > kClose; ++round) {
    const double middle = (low + high) / 2, found = at(middle);
    const double off = std::abs(found - target) / target;
    if (off < distance) {
      best = middle;
      distance = off;
    }
    ((found < target) == rising ? low : high) = middle;
  }
  if (distance > kAccepted) return {};
  wanted.knob->set(tried, best);
  ReplayRow row = run(tried);
  row.parameter = fmt::format("{}={:.4g}", wanted.knob->parameter, best);
  return row;
}

std::optional<ReplayRow> Replay::at_density(const ReplayCase& wanted, double pv_density) {
  return search(wanted, pv_density, [](const ReplayRow& row) { return row.pv_density; });
}

std::optional<ReplayRow> Replay::at_speedup(const ReplayCase& wanted, double speedup) {
  return search(wanted, speedup, [](const ReplayRow& row) { return row.speedup(); });
}

}  // namespace lacuna
