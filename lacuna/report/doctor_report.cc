// SPDX-License-Identifier: Apache-2.0
// The doctor's findings as report data.
#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <set>

#include "lacuna/report/doctor.h"
#include "lacuna/report/sections.h"

namespace lacuna {

namespace {

std::vector<int> layers_of(const Diagnosis& d) {
  std::set<int> layers;
  for (const Decision& x : d.decisions) layers.insert(x.layer);
  return {layers.begin(), layers.end()};
}

// Over the decisions of one layer.
double mean_of(const Diagnosis& d, int layer, const std::function<double(const Decision&)>& value) {
  double sum = 0.0, count = 0.0;
  for (const Decision& x : d.decisions) {
    if (x.layer != layer) continue;
    sum += value(x);
    count += 1.0;
  }
  return count > 0.0 ? sum / count : 0.0;
}

// "sparse", "dense: why", "sparse at steps 6-19, else dense: why".
std::string decision_text(const Diagnosis& d, int layer) {
  std::string steps, why;
  bool any_dense = false;
  for (const Decision& x : d.decisions) {
    if (x.layer != layer) continue;
    if (x.sparse) {
      steps += fmt::format("{}{}-{}", steps.empty() ? "" : ", ", x.step_begin, x.step_end - 1);
    } else {
      any_dense = true;
      if (why.empty()) why = x.why;
    }
  }
  if (!any_dense) return "sparse";
  if (steps.empty()) return "dense: " + why;
  return fmt::format("sparse at steps {}; else dense: {}", steps, why);
}

Json layer_table(const Diagnosis& d, const MeasuredCost& cost) {
  Json rows = Json::array();
  for (const int layer : layers_of(d)) {
    double loss = 0.0;
    for (const Decision& x : d.decisions)
      if (x.layer == layer) loss = std::max(loss, x.loss);
    rows.push_back(
        {{"layer", layer},
         {"needed", mean_of(d, layer, [](const Decision& x) { return x.needed; })},
         {"loss", loss},
         {"dense_ms", cost.model.dense_ms()},
         {"sparse_ms", mean_of(d, layer, [](const Decision& x) { return x.sparse_ms; })},
         {"density",
          mean_of(d, layer, [](const Decision& x) { return x.sparse ? x.density : 1.0; })},
         {"decision", decision_text(d, layer)}});
  }
  return table_section(
      "Layers",
      fmt::format("Means over the examined steps. A head's need is the least density at which its "
                  "output is within rel_l1 {:.4g} of dense.",
                  d.target),
      {{"layer", "layer"},
       {"needed", "needed density", "", "mean over heads", 3},
       {"loss", "rel_l1", "", "of the layer's output, largest over the steps", 4},
       {"dense_ms", "dense", "ms", "one call", 2},
       {"sparse_ms", "sparse", "ms", "one call expected, selection counted", 2},
       {"density", "density", "", "as decided; 1 = dense", 3},
       {"decision", "decision"}},
      std::move(rows));
}

std::string faster_when(double break_even) {
  if (break_even == 0.0) return "Never faster than dense";
  if (break_even == 1.0) return "Faster than dense at every density";
  return fmt::format("Faster than dense below density {:.3f}", break_even);
}

Json cost_table(const Diagnosis& d, const MeasuredCost& cost) {
  const CostModel& model = cost.model;
  Json rows = Json::array();
  rows.push_back({{"attention", "dense"},
                  {"density", 1.0},
                  {"select_ms", 0.0},
                  {"attend_ms", model.dense_ms()},
                  {"speedup", 1.0}});
  for (auto p = model.points().rbegin(); p != model.points().rend(); ++p)
    rows.push_back({{"attention", d.method},
                    {"density", p->density},
                    {"select_ms", model.select_ms()},
                    {"attend_ms", p->ms},
                    {"speedup", model.dense_ms() / (model.select_ms() + p->ms)}});
  const double break_even = model.break_even();
  Json table = table_section("What attention costs on this machine",
                             fmt::format("One call at {} tokens, measured on {} heads. {}.",
                                         d.tokens, cost.heads, faster_when(break_even)),
                             {{"attention", "attention"},
                              {"density", "density", "", "share of pairs computed", 3},
                              {"select_ms", "selection", "ms", "", 2},
                              {"attend_ms", "attention", "ms", "", 2},
                              {"speedup", "speed-up", "x", "selection counted", 2}},
                             std::move(rows));
  table["break_even"] = break_even;
  return table;
}

double needed(const HeadNeed& head) {
  return head.reached ? head.density : 1.0;
}

// Means over the examined calls of a layer, by head or by step; null where nothing was examined.
Json needed_map(const Examined& examined, const std::vector<int>& layers, bool by_head) {
  std::set<int> steps;
  size_t heads = 0;
  for (const Finding& f : examined.findings) {
    steps.insert(f.step);
    heads = std::max(heads, f.heads.size());
  }
  std::vector<std::string> row_labels, column_labels;
  Json values = Json::array();
  if (by_head) {
    for (size_t h = 0; h < heads; ++h) column_labels.push_back(fmt::format("{}", h));
  } else {
    for (const int step : steps) column_labels.push_back(fmt::format("{}", step));
  }
  for (const int layer : layers) {
    row_labels.push_back(fmt::format("{}", layer));
    std::vector<double> sum(column_labels.size(), 0.0), count(column_labels.size(), 0.0);
    for (const Finding& f : examined.findings) {
      if (f.layer != layer) continue;
      const auto step = static_cast<size_t>(std::distance(steps.begin(), steps.find(f.step)));
      for (size_t h = 0; h < f.heads.size(); ++h) {
        sum[by_head ? h : step] += needed(f.heads[h]);
        count[by_head ? h : step] += 1.0;
      }
    }
    Json row = Json::array();
    for (size_t i = 0; i < sum.size(); ++i)
      row.push_back(count[i] > 0.0 ? Json(sum[i] / count[i]) : Json());
    values.push_back(std::move(row));
  }
  return heatmap_section(by_head ? "Density each head needs" : "Density each layer needs",
                         by_head ? "Mean over the examined steps; 1 = stays dense."
                                 : "Mean over its heads, by examined step.",
                         "layer", row_labels, by_head ? "head" : "step", column_labels,
                         std::move(values), "density");
}

Json layer_bars(const Diagnosis& d, const MeasuredCost& cost) {
  std::vector<std::string> categories;
  std::vector<double> select, attend;
  for (const int layer : layers_of(d)) {
    categories.push_back(fmt::format("layer {}, dense", layer));
    select.push_back(0.0);
    attend.push_back(cost.model.dense_ms());
    categories.push_back(fmt::format("layer {}, sparse", layer));
    select.push_back(cost.model.select_ms());
    attend.push_back(mean_of(d, layer, [](const Decision& x) { return x.sparse_ms; }) -
                     cost.model.select_ms());
  }
  return time_bars_section("Expected time of one call",
                           "Dense beside sparse at the density that the layer's heads need.",
                           categories, select, attend);
}

}  // namespace

Json doctor_sections(const Diagnosis& d, const Examined& examined, const MeasuredCost& cost) {
  const std::vector<int> layers = layers_of(d);
  return Json::array({text_section("Verdict", {verdict(d, cost)}), layer_table(d, cost),
                      cost_table(d, cost), needed_map(examined, layers, true),
                      needed_map(examined, layers, false), layer_bars(d, cost)});
}

}  // namespace lacuna
