// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <map>
#include <set>

#include "lacuna/engine/explain.h"
#include "lacuna/report/inspect_parts.h"

namespace lacuna {
namespace {

// Sums over the calls of a step, of a layer, or of both.
struct Sum {
  double calls = 0, refreshed = 0, sparse_heads = 0;
  double qk = 0, pv = 0, select_ms = 0, attend_ms = 0;
  std::set<std::string> methods, reasons;

  void add(const TraceEntry& e) {
    calls += 1;
    if (e.reason.empty()) {  // a look selects, but its call is dense
      refreshed += e.heads_refreshed;
      sparse_heads += e.num_heads;
    }
    qk += e.qk_density;
    pv += e.pv_density;
    select_ms += e.select_ms;
    attend_ms += e.attend_ms;
    methods.insert(e.method);
    if (!e.reason.empty()) reasons.insert(e.reason);
  }
  Json refreshed_share() const {
    return sparse_heads == 0 ? Json() : Json(refreshed / sparse_heads);
  }
};

std::string joined(const std::set<std::string>& words) {
  return fmt::format("{}", fmt::join(words, ", "));
}

Json row_of(const char* key, int place, const Sum& sum) {
  return {{key, place},
          {"qk", sum.qk / sum.calls},
          {"pv", sum.pv / sum.calls},
          {"refreshed", sum.refreshed_share()},
          {"select_ms", sum.select_ms},
          {"attend_ms", sum.attend_ms},
          {"methods", joined(sum.methods)},
          {"dense", joined(sum.reasons)}};
}

Json place_table(std::string_view title, const char* key, const std::map<int, Sum>& sums) {
  Json rows = Json::array();
  for (const auto& [place, sum] : sums) rows.push_back(row_of(key, place, sum));
  return table_section(
      title, "Means of densities and sums of times over the calls.",
      {{key, key},
       {"qk", "QK", "", "listed pairs / all", 3},
       {"pv", "PV", "", "computed pairs / all, after the skip rule", 3},
       {"refreshed", "refreshed", "", "share of sparse heads whose mask was selected anew", 2},
       {"select_ms", "selection", "ms", "", 1},
       {"attend_ms", "attention", "ms", "", 1},
       {"methods", "methods"},
       {"dense", "dense because"}},
      rows);
}

// Layer x step of one value of the sums.
template <typename Value>
Json layer_step_map(std::string_view title, std::string_view note, std::string_view unit,
                    const std::map<int, std::map<int, Sum>>& layers, const std::set<int>& steps,
                    Value value) {
  std::vector<std::string> row_labels, column_labels;
  for (const int step : steps) column_labels.push_back(std::to_string(step));
  Json values = Json::array();
  for (const auto& [layer, sums] : layers) {
    row_labels.push_back(std::to_string(layer));
    Json row = Json::array();
    for (const int step : steps) {
      const auto found = sums.find(step);
      row.push_back(found == sums.end() ? Json() : value(found->second));
    }
    values.push_back(std::move(row));
  }
  return heatmap_section(title, note, "layer", row_labels, "step", column_labels, values, unit);
}

Json time_bars(const std::map<int, Sum>& layers) {
  std::vector<std::string> names;
  std::vector<double> select, attend;
  for (const auto& [layer, sum] : layers) {
    names.push_back(fmt::format("layer {}", layer));
    select.push_back(sum.select_ms);
    attend.push_back(sum.attend_ms);
  }
  return time_bars_section("Time per layer", "Over all steps and branches.", names, select, attend);
}

Json explain_table(const TraceFile& trace) {
  Json rows = Json::array();
  for (const ExplainRow& row : explain(trace.calls, trace.header.rules))
    rows.push_back({{"steps", range_text(row.step_begin, row.step_end)},
                    {"layers", range_text(row.layer_begin, row.layer_end)},
                    {"branch", row.branch},
                    {"what", row.what},
                    {"why", row.why},
                    {"calls", row.calls},
                    {"refreshed", row.refreshed},
                    {"reused", row.reused},
                    {"qk", row.qk_density},
                    {"pv", row.pv_density}});
  return table_section("What ran where", "Equal neighbours are one row.",
                       {{"steps", "steps"},
                        {"layers", "layers"},
                        {"branch", "branch"},
                        {"what", "rule"},
                        {"why", "dense because"},
                        {"calls", "calls"},
                        {"refreshed", "refreshed", "heads"},
                        {"reused", "reused", "heads"},
                        {"qk", "QK", "", "", 3},
                        {"pv", "PV", "", "", 3}},
                       rows);
}

}  // namespace

void add_trace_sections(const TraceFile& trace, Json& sections) {
  if (trace.calls.empty()) {
    sections.push_back(text_section("Calls", {"No attention call ran."}));
    return;
  }
  std::map<int, Sum> steps, layers;
  std::map<int, std::map<int, Sum>> both;
  std::set<int> step_names;
  for (const TraceEntry& e : trace.calls) {
    steps[e.site.step].add(e);
    layers[e.site.layer].add(e);
    both[e.site.layer][e.site.step].add(e);
    step_names.insert(e.site.step);
  }
  sections.push_back(explain_table(trace));
  sections.push_back(place_table("Steps", "step", steps));
  sections.push_back(place_table("Layers", "layer", layers));
  sections.push_back(layer_step_map("Density", "Computed (query, key) pairs / all; 1 is dense.",
                                    "density", both, step_names,
                                    [](const Sum& sum) { return Json(sum.pv / sum.calls); }));
  sections.push_back(layer_step_map(
      "Refreshed heads", "Share of sparse heads whose mask was selected anew; the rest reused one.",
      "share", both, step_names, [](const Sum& sum) { return sum.refreshed_share(); }));
  sections.push_back(time_bars(layers));
}

}  // namespace lacuna
