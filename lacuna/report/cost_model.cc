// SPDX-License-Identifier: Apache-2.0
#include "lacuna/report/cost_model.h"

#include <algorithm>

#include "lacuna/calibrate/replay_call.h"
#include "lacuna/core/error.h"

namespace lacuna {

namespace {

RecordedCall first_heads(const RecordedCall& call, int64_t heads) {
  RecordedCall part = call;
  part.q = call.q.slice(0, heads);
  part.k = call.k.slice(0, heads);
  part.v = call.v.slice(0, heads);
  return part;
}

// How many heads can be measured in the time: a trial call on one tells.
int64_t affordable_heads(Backend& backend, const RecordedCall& call, const CostSettings& settings,
                         const std::function<void()>& between) {
  const CallOutcome one = replay_call(backend, first_heads(call, 1), Plan(), 1, between);
  // Dense in f32 and as recorded, and each density: a warm call and the repeats.
  const auto points = static_cast<double>(settings.densities.size());
  const double calls = (2.0 + points) * (settings.repeats + 1);
  const double per_head = calls * one.attend_ms / 1000.0;
  return std::clamp(static_cast<int64_t>(settings.seconds / per_head), int64_t{1}, call.q.shape[0]);
}

}  // namespace

CostModel::CostModel(double dense_ms, double select_ms, std::vector<Point> points)
    : dense_ms_(dense_ms), select_ms_(select_ms), points_(std::move(points)) {
  LACUNA_CHECK(!points_.empty() && dense_ms > 0.0 && select_ms >= 0.0,
               "cost model: {} points, dense {} ms, selection {} ms; expected a point and times",
               points_.size(), dense_ms, select_ms);
  std::sort(points_.begin(), points_.end(),
            [](const Point& a, const Point& b) { return a.density < b.density; });
  double longest = 0.0;
  for (Point& p : points_) {
    LACUNA_CHECK(p.density > 0.0 && p.density <= 1.0 && p.ms > 0.0,
                 "cost model: {} ms at density {}, expected a time and a density in (0, 1]", p.ms,
                 p.density);
    longest = p.ms = std::max(p.ms, longest);
  }
}

double CostModel::attend_ms(double density) const {
  if (density <= points_.front().density) return points_.front().ms;
  for (size_t i = 1; i < points_.size(); ++i) {
    const Point &a = points_[i - 1], &b = points_[i];
    if (density > b.density) continue;
    return a.ms + (b.ms - a.ms) * (density - a.density) / (b.density - a.density);
  }
  return points_.back().ms * density / points_.back().density;
}

double CostModel::sparse_ms(std::span<const double> head_densities) const {
  double sum = 0.0;
  for (const double density : head_densities) sum += attend_ms(density);
  return select_ms_ + sum / static_cast<double>(head_densities.size());
}

double CostModel::break_even() const {
  const auto pays = [this](double density) { return select_ms_ + attend_ms(density) < dense_ms_; };
  double low = points_.front().density, high = 1.0;
  if (!pays(low)) return 0.0;
  if (pays(high)) return high;
  for (int i = 0; i < 60; ++i) {
    const double middle = (low + high) / 2;
    (pays(middle) ? low : high) = middle;
  }
  return low;
}

MeasuredCost measure_cost(Backend& backend, const RecordedCall& call, const ReplayCase& wanted,
                          const CostSettings& settings, const std::function<void()>& between) {
  LACUNA_CHECK(wanted.knob, "cost: {} has no parameter that moves its density", wanted.name);
  const int64_t all = call.q.shape[0];
  const int64_t heads = affordable_heads(backend, call, settings, between);
  const RecordedCall part = first_heads(call, heads);
  Replay replay(backend, std::span(&part, 1), settings.repeats, between);
  ReplayCase full = wanted;
  wanted.knob->set(full, wanted.knob->full);
  std::vector<ReplayRow> rows{replay.run(full)};
  Replay::Known known;
  for (const double density : settings.densities)
    if (const auto row = replay.at_density(wanted, density, &known)) rows.push_back(*row);
  if (rows.size() == 1) {  // too few blocks for any of them: the sparse end shows what there is
    ReplayCase sparse = wanted;
    wanted.knob->set(sparse, wanted.knob->sparse);
    rows.push_back(replay.run(sparse));
  }
  const double scale = static_cast<double>(all) / static_cast<double>(heads);
  std::vector<CostModel::Point> points;
  std::vector<double> select;
  for (const ReplayRow& row : rows) {
    points.push_back({row.pv_density, scale * row.attend_ms});
    select.push_back(scale * row.selections * row.select_ms);
  }
  return {CostModel(scale * replay.dense().dense_ms, median(std::move(select)), std::move(points)),
          heads, rows.front().pv_density};
}

}  // namespace lacuna
