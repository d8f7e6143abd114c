// SPDX-License-Identifier: Apache-2.0
// The doctor's findings as report data.
#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <set>

#include "lacuna/report/doctor.h"

namespace lacuna {

namespace {

Json text_column(const char* name) {
  return {{"key", name}, {"name", name}};
}

Json column(const char* key, const char* name, const char* unit, int digits, const char* help) {
  return {{"key", key}, {"name", name}, {"unit", unit}, {"digits", digits}, {"help", help}};
}

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
  return {{"kind", "table"},
          {"title", "Layers"},
          {"note",
           fmt::format("Means over the examined steps. A head's need is the least density at which "
                       "its output is within rel_l1 {:.4g} of dense.",
                       d.target)},
          {"columns",
           Json::array(
               {column("layer", "layer", "", 0, ""),
                column("needed", "needed density", "", 3, "mean over heads"),
                column("loss", "rel_l1", "", 4, "of the layer's output, largest over the steps"),
                column("dense_ms", "dense", "ms", 2, "one call"),
                column("sparse_ms", "sparse", "ms", 2, "one call expected, selection counted"),
                column("density", "density", "", 3, "as decided; 1 = dense"),
                text_column("decision")})},
          {"rows", rows}};
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
  return {{"kind", "table"},
          {"title", "What attention costs on this machine"},
          {"note", fmt::format("One call at {} tokens, measured on {} heads. {}.", d.tokens,
                               cost.heads, faster_when(break_even))},
          {"columns", Json::array({text_column("attention"),
                                   column("density", "density", "", 3, "share of pairs computed"),
                                   column("select_ms", "selection", "ms", 2, ""),
                                   column("attend_ms", "attention", "ms", 2, ""),
                                   column("speedup", "speed-up", "x", 2, "selection counted")})},
          {"rows", rows},
          {"break_even", break_even}};
}

Json heatmap(const char* title, const char* note, const char* columns, const Json& row_labels,
             const Json& column_labels, const Json& values) {
  return {{"kind", "heatmap"},
          {"title", title},
          {"note", note},
          {"rows", {{"name", "layer"}, {"labels", row_labels}}},
          {"columns", {{"name", columns}, {"labels", column_labels}}},
          {"values", values},
          {"unit", "density"},
          {"min", 0},
          {"max", 1}};
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
  Json row_labels = Json::array(), column_labels = Json::array(), values = Json::array();
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
  return by_head
             ? heatmap("Density each head needs", "Mean over the examined steps; 1 = stays dense.",
                       "head", row_labels, column_labels, values)
             : heatmap("Density each layer needs", "Mean over its heads, by examined step.", "step",
                       row_labels, column_labels, values);
}

Json layer_bars(const Diagnosis& d, const MeasuredCost& cost) {
  Json categories = Json::array(), select = Json::array(), attend = Json::array();
  for (const int layer : layers_of(d)) {
    categories.push_back(fmt::format("layer {}, dense", layer));
    select.push_back(0.0);
    attend.push_back(cost.model.dense_ms());
    categories.push_back(fmt::format("layer {}, sparse", layer));
    select.push_back(cost.model.select_ms());
    attend.push_back(mean_of(d, layer, [](const Decision& x) { return x.sparse_ms; }) -
                     cost.model.select_ms());
  }
  const Json selection = {{"name", "selection"}, {"values", select}};
  const Json attention = {{"name", "attention"}, {"values", attend}};
  return {{"kind", "bars"},
          {"title", "Expected time of one call"},
          {"note", "Dense beside sparse at the density that the layer's heads need."},
          {"unit", "ms"},
          {"categories", categories},
          {"series", Json::array({selection, attention})}};
}

}  // namespace

Json doctor_sections(const Diagnosis& d, const Examined& examined, const MeasuredCost& cost) {
  const std::vector<int> layers = layers_of(d);
  const Json text = {
      {"kind", "text"}, {"title", "Verdict"}, {"paragraphs", Json::array({verdict(d, cost)})}};
  return Json::array({text, layer_table(d, cost), cost_table(d, cost),
                      needed_map(examined, layers, true), needed_map(examined, layers, false),
                      layer_bars(d, cost)});
}

}  // namespace lacuna
