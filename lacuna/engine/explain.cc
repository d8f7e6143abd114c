// SPDX-License-Identifier: Apache-2.0
#include "lacuna/engine/explain.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <tuple>

namespace lacuna {

namespace {

// One value, or the range of the heads' values.
template <typename T>
std::string value_text(std::span<const T> values) {
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  return *low == *high ? fmt::format("{:g}", *low) : fmt::format("{:g}..{:g}", *low, *high);
}

void add_word(std::string& text, std::string_view word) {
  text += text.find(':') == text.npos ? ":" : ",";
  text += word;
}

void add_changed(std::string& text, const Params& params) {
  for (const ParamSpec& spec : params.specs()) {
    const auto values = params.values(spec.name);
    const bool changed = std::any_of(values.begin(), values.end(),
                                     [&](double v) { return v != spec.default_value; });
    if (changed) add_word(text, fmt::format("{}={}", spec.name, value_text(values)));
  }
}

void add_refresh(std::string& text, const Refresh& refresh) {
  add_word(text, fmt::format("refresh={}", refresh_info(refresh.kind).name));
  if (refresh.kind == RefreshKind::at_steps)
    add_word(text, fmt::format("at={}", fmt::join(refresh.steps, "+")));
  if (refresh.kind == RefreshKind::carry) add_word(text, fmt::format("retest={}", refresh.retest));
  if (refresh.kind != RefreshKind::drift) return;
  const Refresh usual;
  add_word(text, fmt::format("delta={:g}", refresh.delta));
  if (refresh.gate_low != usual.gate_low)
    add_word(text, fmt::format("gate_low={:g}", refresh.gate_low));
  if (refresh.gate_high != usual.gate_high)
    add_word(text, fmt::format("gate_high={:g}", refresh.gate_high));
  if (refresh.relative != usual.relative)
    add_word(text, fmt::format("relative={:d}", refresh.relative));
  if (refresh.pool != usual.pool) add_word(text, fmt::format("pool={}", refresh.pool));
}

// What two neighbouring calls must share to be one row.
struct Kind {
  int rule;
  std::string method, reason;
  auto operator<=>(const Kind&) const = default;
};

struct Cell {
  Kind kind;
  const TraceEntry* call;
};

void add_call(ExplainRow& row, const TraceEntry& call) {
  ++row.calls;
  if (call.reason.empty()) {
    row.refreshed += call.heads_refreshed;
    row.reused += call.num_heads - call.heads_refreshed;
  }
  row.qk_density += call.qk_density;
  row.pv_density += call.pv_density;
}

// Runs of layers of one step that are of one kind.
using Runs = std::vector<std::pair<Kind, ExplainRow>>;
Runs runs_of_step(int step, const std::map<int, std::vector<Cell>>& layers) {
  Runs runs;
  for (const auto& [layer, cells] : layers)
    for (const Cell& cell : cells) {
      const bool joins =
          !runs.empty() && runs.back().first == cell.kind && runs.back().second.layer_end >= layer;
      if (!joins) {
        runs.emplace_back(cell.kind, ExplainRow{step, step + 1, layer, layer + 1});
      }
      ExplainRow& row = runs.back().second;
      row.layer_end = layer + 1;
      add_call(row, *cell.call);
    }
  return runs;
}

void merge(ExplainRow& row, const ExplainRow& other) {
  row.step_end = std::max(row.step_end, other.step_end);
  row.calls += other.calls;
  row.refreshed += other.refreshed;
  row.reused += other.reused;
  row.qk_density += other.qk_density;
  row.pv_density += other.pv_density;
}

// Rows of one branch, sums instead of means.
Runs rows_of_branch(std::span<const TraceEntry> calls, Branch branch) {
  std::map<int, std::map<int, std::vector<Cell>>> steps;
  for (const TraceEntry& call : calls)
    if (call.site.branch == branch)
      steps[call.site.step][call.site.layer].push_back(
          {{call.rule, call.method, call.reason}, &call});
  Runs rows;
  for (const auto& [step, layers] : steps)
    for (const auto& [kind, run] : runs_of_step(step, layers)) {
      const auto open = std::find_if(rows.begin(), rows.end(), [&](const auto& row) {
        return row.first == kind && row.second.step_end == run.step_begin &&
               row.second.layer_begin == run.layer_begin && row.second.layer_end == run.layer_end;
      });
      if (open == rows.end()) {
        rows.emplace_back(kind, run);
      } else {
        merge(open->second, run);
      }
    }
  return rows;
}

}  // namespace

std::string describe(const Rule& rule) {
  const Plan& plan = rule.plan;
  std::string text(plan.method == nullptr ? "dense" : plan.method->name());
  if (plan.method != nullptr) {
    add_changed(text, plan.params);
    const RefreshKind usual =
        plan.method->static_mask() ? RefreshKind::never : RefreshKind::every_step;
    if (plan.refresh.kind != usual) add_refresh(text, plan.refresh);
    if (plan.compensate != Compensation::none)
      add_word(text, fmt::format("compensate={}", compensation_info(plan.compensate).name));
  }
  if (plan.skip.kind == SkipKind::none) return text;
  std::string skip(skip_info(plan.skip.kind).name);
  for (const SkipValue& value : skip_values(plan.skip))
    add_word(skip, fmt::format("{}={}", value.name, value_text(value.values)));
  return text + " skip " + skip;
}

std::vector<ExplainRow> explain(std::span<const TraceEntry> calls,
                                std::span<const std::string> rules) {
  std::map<std::tuple<int, int, int, int, Kind>, ExplainRow> rows;
  for (const Branch branch : {Branch::cond, Branch::uncond})
    for (auto& [kind, row] : rows_of_branch(calls, branch)) {
      row.branch = branch == Branch::cond ? "cond" : "uncond";
      const auto [same, fresh] = rows.try_emplace(
          {row.step_begin, row.step_end, row.layer_begin, row.layer_end, kind}, row);
      if (fresh) continue;
      merge(same->second, row);
      same->second.branch = "both";
    }
  std::vector<ExplainRow> list;
  for (auto& [key, row] : rows) {
    const Kind& kind = std::get<Kind>(key);
    const auto rule = static_cast<size_t>(kind.rule);
    row.what = kind.rule >= 0 && rule < rules.size() ? rules[rule] : kind.method;
    row.why = kind.reason;
    row.qk_density /= static_cast<double>(row.calls);
    row.pv_density /= static_cast<double>(row.calls);
    list.push_back(row);
  }
  return list;
}

std::string range_text(int begin, int end) {
  return end == begin + 1 ? fmt::format("{}", begin) : fmt::format("{}-{}", begin, end - 1);
}

std::vector<TraceEntry> planned_calls(const Policy& policy, std::span<const Site> sites,
                                      int64_t seq_len, int num_heads) {
  std::vector<TraceEntry> calls;
  for (const Site& site : sites) {
    TraceEntry call;
    call.site = site;
    const Rule& rule = policy.at(site, seq_len);
    call.rule = policy.index(rule);
    call.method = rule.plan.method == nullptr ? "dense" : rule.plan.method->name();
    call.num_heads = num_heads;
    if (rule.plan.method == nullptr) call.reason = dense_reason(rule);
    calls.push_back(std::move(call));
  }
  return calls;
}

}  // namespace lacuna
