// SPDX-License-Identifier: Apache-2.0
#include "lacuna/calibrate/replay.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "lacuna/calibrate/replay_call.h"
#include "lacuna/core/convert.h"
#include "lacuna/core/error.h"
#include "lacuna/core/metrics.h"

namespace lacuna {

namespace {

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
  // The end itself may mean something else: sparge's top_k = 0 turns top-k off.
  const double sparse = spec->min + 1e-3 * (full - spec->min);
  return {std::string(name), sparse, full,
          [name](ReplayCase& other, double value) { other.plan.params.set(name, value); }};
}

// The share kept, with as many digits as tell four of the share lost; more than eight are not in
// a float.
std::string recall_text(double x) {
  const int zeros = static_cast<int>(-x / std::log(10.0));  // of the share lost, exp(x)
  return fmt::format("{:.{}f}", 1.0 - std::exp(x), std::min(zeros + 4, 8));
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
      return ReplayCase::Knob{"lambda", 0.0, -30.0,
                              [](ReplayCase& other, double x) {
                                other.plan.skip.param = {static_cast<float>(std::exp(x))};
                                other.plan.skip.per_key = false;  // the knob is lambda itself
                              },
                              [](double x) { return fmt::format("{:.4g}", std::exp(x)); }};
    case SkipKind::running_lse:
      return ReplayCase::Knob{"lambda", 20.0, -60.0, set([](double x) { return x; })};
    case SkipKind::recall:  // ln(1 - r)
      return ReplayCase::Knob{"r", -0.01, -15.0, set([](double x) { return 1.0 - std::exp(x); }),
                              recall_text};
    case SkipKind::none:
      break;
  }
  return {};
}

}  // namespace

ReplayCase replay_case(std::string_view attention, std::string_view skip) {
  ReplayCase made;
  made.name = attention;
  if (skip != "none")
    made.name = attention == "dense" ? skip : fmt::format("{} + {}", attention, skip);
  made.plan = parse_plan(attention);
  made.plan.skip = parse_skip(skip);
  if (made.plan.skip.kind != SkipKind::none) {
    made.knob = skip_knob(made.plan.skip.kind);
  } else if (made.plan.method != nullptr) {
    const std::string_view name = made.plan.method->density_parameter(made.plan.params);
    if (!name.empty()) made.knob = method_knob(made, name);
  }
  return made;
}

std::vector<ReplayCase> replay_cases(std::span<const std::string> attention,
                                     std::span<const std::string> skip) {
  std::vector<ReplayCase> list;
  for (const std::string& spec : attention) list.push_back(replay_case(spec, "none"));
  for (const std::string& spec : skip) list.push_back(replay_case("dense", spec));
  if (!list.empty()) return list;
  for (const Method* method : all_methods()) {
    if (method->name() != "dense" && !method->takes_masks())
      list.push_back(replay_case(method->name(), "none"));
  }
  for (const SkipInfo& rule : all_skip_rules()) {
    if (rule.kind != SkipKind::none) list.push_back(replay_case("dense", rule.name));
  }
  return list;
}

Replay::Replay(Backend& backend, std::span<const RecordedCall> calls, int repeats,
               std::function<void()> between)
    : backend_(backend), calls_(calls), repeats_(repeats), between_(std::move(between)) {
  LACUNA_CHECK(!calls.empty() && repeats >= 1, "replay: {} calls, {} repeats, expected 1 or more",
               calls.size(), repeats);
  const ReplayCase all = replay_case("dense", "none");
  for (const RecordedCall& call : calls) {
    const Tensor q = converted(call.q, DType::f32), k = converted(call.k, DType::f32),
                 v = converted(call.v, DType::f32);
    const RecordedCall wide{call.site, call.grid, call.text_tokens, q, k, v};
    CallOutcome outcome = replay_call(backend, wide, all.plan, 0, between_);
    references_.push_back({std::move(outcome.out), std::move(outcome.lse)});
  }
  dense_ = measure(all, repeats);  // with no dense_ms yet, its times stay as they are
  dense_.dense_ms = dense_.attend_ms;
}

ReplayRow Replay::reordered() {
  ReplayRow row = dense_;
  row.name = "dense, keys reversed";
  row.rel_l1 = 0.0;
  for (size_t i = 0; i < calls_.size(); ++i) {
    RecordedCall call = calls_[i];
    const auto& shape = call.k.shape;
    const Tensor k(call.k.dtype, {shape[0], shape[1], shape[2]}),
        v(call.v.dtype, {shape[0], shape[1], shape[2]});
    std::vector<int32_t> order(static_cast<size_t>(shape[1]));
    std::iota(order.rbegin(), order.rend(), 0);
    backend_.gather_tokens(call.k, order.data(), 0, k);
    backend_.gather_tokens(call.v, order.data(), 0, v);
    call.k = k;
    call.v = v;
    const CallOutcome outcome = replay_call(backend_, call, Plan(), 0, between_);
    row.rel_l1 += compare(converted(outcome.out, DType::f32), references_[i].out).rel_l1 /
                  static_cast<double>(calls_.size());
  }
  return row;
}

ReplayRow Replay::measure(const ReplayCase& wanted, int repeats) {
  ReplayRow row;
  row.name = wanted.name;
  row.dense_ms = dense_.dense_ms;
  row.qk_density = row.pv_density = row.recall = 0.0;
  const bool once = wanted.plan.method != nullptr && wanted.plan.refresh.kind == RefreshKind::never;
  if (once) row.selections = 0.0;
  const auto n = static_cast<double>(calls_.size());
  double beside_ms = 0.0;  // dense, now
  for (size_t i = 0; i < calls_.size(); ++i) {
    if (repeats > 0)
      beside_ms += replay_call(backend_, calls_[i], Plan(), repeats, between_).attend_ms / n;
    const CallOutcome outcome = replay_call(backend_, calls_[i], wanted.plan, repeats, between_);
    row.qk_density += outcome.qk_density / n;
    row.pv_density += outcome.pv_density / n;
    row.recall += recall_of(outcome.lse, references_[i].lse) / n;
    row.rel_l1 += compare(converted(outcome.out, DType::f32), references_[i].out).rel_l1 / n;
    row.select_ms += outcome.select_ms / n;
    row.attend_ms += outcome.attend_ms / n;
    if (once) row.selections += 1.0 / (n * calls_[i].site.num_steps);
  }
  if (row.dense_ms > 0.0 && beside_ms > 0.0) {
    row.select_ms *= row.dense_ms / beside_ms;
    row.attend_ms *= row.dense_ms / beside_ms;
  }
  return row;
}

ReplayRow Replay::run(const ReplayCase& wanted) {
  return measure(wanted, repeats_);
}

double Replay::density_of(const ReplayCase& wanted) {
  double sum = 0.0;
  for (const RecordedCall& call : calls_) {
    if (between_) between_();
    const auto density = selected_density(backend_, call, wanted.plan);
    sum += density ? *density : replay_call(backend_, call, wanted.plan, 0, between_).pv_density;
  }
  return sum / static_cast<double>(calls_.size());
}

// `value` rises from the sparse end of the knob to the full end, or falls. Halves the range and, in
// every second round, draws a line between its ends: curves are mostly smooth, and where they are
// not the range still halves.
std::optional<ReplayRow> Replay::search(const ReplayCase& wanted, double target, Known& known,
                                        const std::function<double(const ReplayCase&)>& value) {
  constexpr int kRounds = 16;
  constexpr double kClose = 0.01, kAccepted = 0.05;
  if (!wanted.knob) return {};
  ReplayCase tried = wanted;
  const auto at = [&](double x) {
    const auto found = known.find(x);
    if (found != known.end()) return found->second;
    wanted.knob->set(tried, x);
    return known[x] = value(tried);
  };
  double low = wanted.knob->sparse, high = wanted.knob->full;
  double low_value = at(low), high_value = at(high);
  const bool rising = low_value < high_value;
  const auto [least, most] = std::minmax(low_value, high_value);
  if (target < (1.0 - kAccepted) * least || target > (1.0 + kAccepted) * most) return {};
  double best = low, distance = HUGE_VAL;
  for (int round = 0; round < kRounds && distance > kClose; ++round) {
    double share = 0.5;
    const double slope = high_value - low_value;
    if (round % 2 == 1 && slope != 0.0)
      share = std::clamp((target - low_value) / slope, 0.02, 0.98);
    const double middle = low + share * (high - low), found = at(middle);
    const double off = std::abs(found - target) / target;
    if (off < distance) {
      best = middle;
      distance = off;
    }
    const bool up = (found < target) == rising;
    (up ? low : high) = middle;
    (up ? low_value : high_value) = found;
  }
  if (distance > kAccepted) return {};
  wanted.knob->set(tried, best);
  ReplayRow row = run(tried);
  const ReplayCase::Knob& knob = *wanted.knob;
  row.parameter =
      fmt::format("{}={}", knob.parameter,
                  knob.value_text ? knob.value_text(best) : fmt::format("{:.4g}", best));
  return row;
}

std::optional<ReplayRow> Replay::at_density(const ReplayCase& wanted, double pv_density,
                                            Known* known) {
  Known fresh;
  return search(wanted, pv_density, known != nullptr ? *known : fresh,
                [this](const ReplayCase& tried) { return density_of(tried); });
}

std::optional<ReplayRow> Replay::at_speedup(const ReplayCase& wanted, double speedup) {
  Known fresh;
  return search(wanted, speedup, fresh,
                [this](const ReplayCase& tried) { return measure(tried, 1).speedup(); });
}

}  // namespace lacuna
