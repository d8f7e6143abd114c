// SPDX-License-Identifier: Apache-2.0
#include "lacuna/report/comparison_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <span>
#include <string_view>

#include "lacuna/report/sections.h"
#include "lacuna/report/sprite.h"

namespace lacuna {
namespace {

enum class Worst : uint8_t { none, low, high };

struct Metric {
  std::string_view key, name, unit;
  int digits;
  Worst worst;  // which end gets a column of its own
  std::string_view help;
  double (*value)(const CompareMeasurement&);
};

constexpr Metric kQuality[] = {
    {"psnr", "PSNR", "dB", 2, Worst::low,
     "against dense of the same noise, 8-bit RGB, from the mean squared error of all frames",
     [](const CompareMeasurement& m) { return m.quality.psnr; }},
    {"ssim", "SSIM", "", 4, Worst::low, "mean over frames and RGB planes; 1 = identical",
     [](const CompareMeasurement& m) { return m.quality.ssim; }},
    {"flicker", "flicker", "levels", 3, Worst::high,
     "mean change of luma from frame to frame, minus that of dense; 0 = as dense",
     [](const CompareMeasurement& m) { return m.quality.flicker; }},
    {"latents_error", "latents rel. L2", "", 4, Worst::high, "|latents - dense| / |dense|",
     [](const CompareMeasurement& m) { return m.latents_error; }},
};
constexpr Metric kCost[] = {
    {"step_ms", "step", "ms", 1, Worst::none, "one denoising step, everything in it",
     [](const CompareMeasurement& m) { return m.step_ms; }},
    {"attention_ms", "attention", "ms", 1, Worst::none, "attention kernels, per step",
     [](const CompareMeasurement& m) { return m.attend_ms; }},
    {"selection_ms", "selection", "ms", 2, Worst::none, "choosing blocks, per step",
     [](const CompareMeasurement& m) { return m.select_ms; }},
    {"qk_density", "QK density", "", 3, Worst::none, "(query, key) pairs listed / all",
     [](const CompareMeasurement& m) { return m.qk_density; }},
    {"pv_density", "PV density", "", 3, Worst::none, "pairs left after the skip rule / all",
     [](const CompareMeasurement& m) { return m.pv_density; }},
    {"speedup", "sampling speed-up", "x", 2, Worst::low, "sampling end to end, against dense",
     [](const CompareMeasurement& m) { return m.speedup; }},
    {"selection_share", "selection / dense", "", 3, Worst::none,
     "selection time / attention time of dense",
     [](const CompareMeasurement& m) { return m.selection_share; }},
};

// One table of the report.
struct MetricGroup {
  std::span<const Metric> metrics;
  bool against_dense;  // so dense itself has none, and a run may be identical to it
};
constexpr MetricGroup kQualityGroup{kQuality, true}, kCostGroup{kCost, false};

Json number(double value) {
  return std::isfinite(value) ? Json(value) : Json();
}

Spread spread_over(const CompareSubject& subject, double (*value)(const CompareMeasurement&)) {
  std::vector<double> values;
  for (const CompareMeasurement& run : subject.runs) values.push_back(value(run));
  return spread_of(values);
}

// Infinite when every run is identical to dense.
double mean_psnr(const CompareSubject& subject) {
  const Spread spread = spread_over(subject, kQuality[0].value);
  return spread.count == 0 ? std::numeric_limits<double>::infinity() : spread.mean;
}

// Mean squared error of frames, white being 1, over all generations: identical frames count as 0,
// where a mean of PSNR leaves them out.
double mean_squared_error(const CompareSubject& subject) {
  return spread_over(
             subject,
             [](const CompareMeasurement& m) { return std::pow(10.0, -m.quality.psnr / 10.0); })
      .mean;
}

// Generations that no mean of PSNR counts.
int identical_runs(const CompareSubject& subject) {
  return spread_over(subject, kQuality[0].value).infinite;
}

std::string psnr_text(const CompareSubject& subject) {
  const double psnr = mean_psnr(subject);
  if (std::isinf(psnr)) return "identical frames";
  std::string text = fmt::format("PSNR {:.1f} dB", psnr);
  if (const int identical = identical_runs(subject); identical > 0)
    text += fmt::format(" (identical in {} of {})", identical, subject.runs.size());
  return text;
}

double mean_of(const CompareSubject& subject, double (*value)(const CompareMeasurement&)) {
  return spread_over(subject, value).mean;
}

double mean_speedup(const CompareSubject& subject) {
  return mean_of(subject, [](const CompareMeasurement& m) { return m.speedup; });
}

double mean_pv(const CompareSubject& subject) {
  return mean_of(subject, [](const CompareMeasurement& m) { return m.pv_density; });
}

std::vector<const CompareSubject*> with_role(const Comparison& comparison, CompareRole role) {
  std::vector<const CompareSubject*> list;
  for (const CompareSubject& subject : comparison.subjects)
    if (subject.role == role) list.push_back(&subject);
  return list;
}

void add_columns(const Metric& metric, bool spread, std::vector<Column>& columns) {
  const auto add = [&](std::string_view ending, std::string_view what) {
    columns.push_back({fmt::format("{}{}", metric.key, ending),
                       fmt::format("{}{}", metric.name, what), std::string(metric.unit),
                       std::string(metric.help), metric.digits});
  };
  add("", "");
  if (!spread) return;
  add("_sd", " sd");
  if (metric.worst == Worst::low) add("_min", " min");
  if (metric.worst == Worst::high) add("_max", " max");
}

void add_cells(const Metric& metric, const CompareSubject& subject, Json& row) {
  const Spread spread = spread_over(subject, metric.value);
  const std::string key(metric.key);
  row[key] = spread.count == 0 ? Json("identical") : number(spread.mean);
  row[key + "_sd"] = number(spread.deviation);
  row[key + "_min"] = number(spread.low);
  row[key + "_max"] = number(spread.high);
}

Json table(const Comparison& comparison, const MetricGroup& group, const std::string& title,
           const std::string& note) {
  const bool spread = comparison.subjects.front().runs.size() > 1;
  std::vector<Column> columns = {{"name", "attention"}};
  for (const Metric& metric : group.metrics) add_columns(metric, spread, columns);
  const bool identical = spread && group.against_dense &&
                         std::any_of(comparison.subjects.begin(), comparison.subjects.end(),
                                     [](const auto& s) { return identical_runs(s) > 0; });
  if (identical)
    columns.push_back({"identical_runs", "identical", "",
                       "generations whose frames equal those of dense; PSNR is that of the others",
                       0});
  Json rows = Json::array();
  for (const CompareSubject& subject : comparison.subjects) {
    if (subject.role == CompareRole::dense && group.against_dense) continue;
    Json row = {{"name", subject.name}};
    if (subject.role == CompareRole::floor) row["floor"] = true;
    for (const Metric& metric : group.metrics) add_cells(metric, subject, row);
    if (identical) row["identical_runs"] = identical_runs(subject);
    rows.push_back(std::move(row));
  }
  return table_section(title, note, columns, std::move(rows));
}

// Mean, low and high over runs at each index.
struct Line {
  Json values = Json::array(), low = Json::array(), high = Json::array();
};

Line line_of(const CompareSubject& subject, std::vector<double> Quality::*member) {
  Line line;
  for (size_t t = 0; t < (subject.runs.front().quality.*member).size(); ++t) {
    std::vector<double> values;
    for (const CompareMeasurement& run : subject.runs) values.push_back((run.quality.*member)[t]);
    const Spread spread = spread_of(values);
    line.values.push_back(number(spread.mean));
    line.low.push_back(number(spread.low));
    line.high.push_back(number(spread.high));
  }
  return line;
}

Json lines(const Comparison& comparison, std::vector<double> Quality::*member, Json y,
           const std::string& title, const std::string& note) {
  Json series = Json::array(), x = Json::array();
  for (const CompareSubject* subject : with_role(comparison, CompareRole::candidate)) {
    Line line = line_of(*subject, member);
    x = Json::array();
    for (size_t t = 0; t < line.values.size(); ++t) x.push_back(t);
    Json one = {{"name", subject->name}, {"values", std::move(line.values)}};
    if (subject->runs.size() > 1) {
      one["low"] = std::move(line.low);
      one["high"] = std::move(line.high);
    }
    series.push_back(std::move(one));
  }
  Json section = {{"kind", "lines"},   {"title", title},
                  {"note", note},      {"x", {{"name", "frame"}, {"values", x}}},
                  {"y", std::move(y)}, {"series", std::move(series)}};
  const auto floors = with_role(comparison, CompareRole::floor);
  if (!floors.empty())
    section["floor"] = {{"name", floors.front()->name},
                        {"values", line_of(*floors.front(), member).values}};
  return section;
}

std::vector<std::string> labels(size_t count) {
  std::vector<std::string> list;
  for (size_t i = 0; i < count; ++i) list.push_back(std::to_string(i));
  return list;
}

Json heatmap(const CompareSubject& subject) {
  const auto& first = subject.runs.front().density;
  Json values = Json::array();
  for (size_t l = 0; l < first.size(); ++l) {
    Json row = Json::array();
    for (size_t s = 0; s < first[l].size(); ++s) {
      double sum = 0.0;
      for (const CompareMeasurement& run : subject.runs) sum += run.density[l][s];
      row.push_back(sum / static_cast<double>(subject.runs.size()));
    }
    values.push_back(std::move(row));
  }
  return heatmap_section(
      "Density: " + subject.name,
      "Share of (query, key) pairs that were computed (P V), mean over runs; 1 = dense", "layer",
      labels(first.size()), "step", labels(first.front().size()), std::move(values), "density");
}

Json bars(const Comparison& comparison) {
  std::vector<std::string> categories;
  std::vector<double> selection, attention;
  const size_t layers = comparison.subjects.front().runs.front().layers.size();
  for (size_t l = 0; l < layers; ++l)
    for (const CompareSubject& subject : comparison.subjects) {
      if (subject.role == CompareRole::floor) continue;
      double select_ms = 0.0, attend_ms = 0.0;
      for (const CompareMeasurement& run : subject.runs) {
        select_ms += run.layers[l].select_ms / static_cast<double>(subject.runs.size());
        attend_ms += run.layers[l].attend_ms / static_cast<double>(subject.runs.size());
      }
      categories.push_back(fmt::format("layer {}, {}", l, subject.name));
      selection.push_back(select_ms);
      attention.push_back(attend_ms);
    }
  return time_bars_section(
      "Time per layer", "Selection and attention of one denoising step, mean over steps and runs",
      categories, selection, attention);
}

std::string thread_sentence(const ThreadCheck& check) {
  return fmt::format(
      "Another number of threads ({} instead of {}, first {} steps of the first seed): latents {}.",
      check.other_threads, check.threads, check.steps,
      check.identical ? "identical bit for bit, as designed" : "DIFFER, which is a bug");
}

Json floor_text(const Comparison& comparison) {
  std::vector<std::string> paragraphs = {
      "The floor is dense attention against dense attention of the same noise: the same "
      "mathematics, sums rounded in another order. A diffusion model amplifies such differences, "
      "so a candidate that is no farther from dense than the floor, in the squared error of frames "
      "(identical ones: 0) and in latents, cannot be told from it."};
  const auto floors = with_role(comparison, CompareRole::floor);
  if (floors.size() == 1)
    paragraphs.push_back(
        "Only the order of keys was changed: there is no second set of kernels here that is fast "
        "enough.");
  if (comparison.threads) paragraphs.push_back(thread_sentence(*comparison.threads));
  for (const CompareSubject* candidate : with_role(comparison, CompareRole::candidate))
    paragraphs.push_back(
        fmt::format("{} is {} the noise floor: {}, latents rel. L2 {:.4f}.", candidate->name,
                    within_floor(comparison, *candidate) ? "within" : "outside",
                    psnr_text(*candidate), mean_of(*candidate, kQuality[3].value)));
  for (const CompareSubject* floor : floors)
    paragraphs.push_back(fmt::format("Floor, {}: {}, latents rel. L2 {:.4f}.", floor->name,
                                     psnr_text(*floor), mean_of(*floor, kQuality[3].value)));
  return text_section("Noise floor", std::move(paragraphs));
}

std::string describe(const CompareSubject& subject) {
  return fmt::format("{:.2f}x at P V density {:.3f}, {} to dense", mean_speedup(subject),
                     mean_pv(subject), psnr_text(subject));
}

std::string summary(const Comparison& comparison) {
  const auto candidates = with_role(comparison, CompareRole::candidate);
  const auto& fastest = **std::max_element(candidates.begin(), candidates.end(),
                                           [](const CompareSubject* a, const CompareSubject* b) {
                                             return mean_speedup(*a) < mean_speedup(*b);
                                           });
  const auto& closest = **std::min_element(candidates.begin(), candidates.end(),
                                           [](const CompareSubject* a, const CompareSubject* b) {
                                             return mean_squared_error(*a) < mean_squared_error(*b);
                                           });
  std::string text =
      fmt::format("{} {}: {}.",
                  mean_speedup(fastest) < 1.0 ? "No candidate is faster than dense; least slow is"
                                              : "Fastest is",
                  fastest.name, describe(fastest));
  if (&closest != &fastest)
    text += fmt::format(" Closest to dense is {}: {}.", closest.name, describe(closest));
  const auto floors = with_role(comparison, CompareRole::floor);
  if (floors.empty()) return text;
  std::string within;
  for (const CompareSubject* candidate : candidates)
    if (within_floor(comparison, *candidate))
      within += (within.empty() ? "" : ", ") + candidate->name;
  return text + fmt::format(" Dense against itself ({}): {}; within that floor: {}.",
                            floors.front()->name, psnr_text(*floors.front()),
                            within.empty() ? "none" : within);
}

// Every generation apart, by prompt, then seed: spreads hide that all subjects share their noise.
Json every_run(const Comparison& comparison) {
  Json list = Json::array();
  for (const CompareSubject& subject : comparison.subjects) {
    Json one = {{"name", subject.name}};
    for (const MetricGroup& group : {kQualityGroup, kCostGroup}) {
      if (subject.role == CompareRole::dense && group.against_dense) continue;
      for (const Metric& metric : group.metrics)
        for (const CompareMeasurement& run : subject.runs)
          one[std::string(metric.key)].push_back(number(metric.value(run)));
    }
    list.push_back(std::move(one));
  }
  return list;
}

Json settings(const Comparison& comparison, const CompareTask& task,
              const std::string& model_name) {
  const Request& r = task.request;
  Json json = {{"model", model_name}};
  for (size_t i = 0; i < task.prompts.size(); ++i)
    json[task.prompts.size() == 1 ? "prompt" : fmt::format("prompt {}", i + 1)] = task.prompts[i];
  if (r.guided() && !r.negative_prompt.empty()) json["negative prompt"] = r.negative_prompt;
  json["seeds"] = task.seeds == 1 ? std::to_string(r.seed)
                                  : fmt::format("{} to {}", r.seed,
                                                r.seed + static_cast<uint64_t>(task.seeds) - 1);
  json["width"] = r.width;
  json["height"] = r.height;
  json["frames"] = r.frames;
  json["tokens"] = comparison.tokens;
  json["steps"] = r.sampler.num_steps;
  json["sampler"] = sampler_name(r.sampler.kind);
  json["shift"] = r.sampler.shift;
  json["guidance"] = r.guidance;
  json["dtype"] = r.dtype;
  return json;
}

}  // namespace

bool within_floor(const Comparison& comparison, const CompareSubject& candidate) {
  const auto floors = with_role(comparison, CompareRole::floor);
  double frames = 0.0, latents = 0.0;
  for (const CompareSubject* floor : floors) {
    frames = std::max(frames, mean_squared_error(*floor));
    latents = std::max(latents, mean_of(*floor, kQuality[3].value));
  }
  return !floors.empty() && mean_squared_error(candidate) <= frames &&
         mean_of(candidate, kQuality[3].value) <= latents;
}

std::vector<std::string> clip_label(const CompareSubject& subject) {
  const std::string cost =
      fmt::format("PV {:.3f}  {:.2f}x", mean_pv(subject), mean_speedup(subject));
  if (subject.role == CompareRole::dense) return {subject.name, cost};
  return {subject.name, psnr_text(subject) + "  " + cost};
}

Json comparison_report(const Comparison& comparison, const CompareTask& task,
                       const std::string& model_name, const Json& machine,
                       size_t max_picture_bytes) {
  const auto candidates = with_role(comparison, CompareRole::candidate);
  const size_t runs = comparison.subjects.front().runs.size();
  const std::string over =
      runs == 1 ? "One generation." : fmt::format("Mean over {} generations.", runs);
  Json sections = Json::array();
  sections.push_back(table(comparison, kQualityGroup, "Quality against dense",
                           over + " 'identical': frames equal those of dense to the last bit."));
  sections.push_back(table(comparison, kCostGroup, "Cost",
                           over + " Dense and candidates were measured in turn, in one run."));
  if (!with_role(comparison, CompareRole::floor).empty())
    sections.push_back(floor_text(comparison));
  if (max_picture_bytes > 0 && comparison.subjects.front().clip.frames() > 0) {
    std::vector<NamedClip> clips{{"dense", &comparison.subjects.front().clip}};
    for (const CompareSubject* candidate : candidates)
      clips.push_back({candidate->name, &candidate->clip});
    sections.push_back(player_section(clips, max_picture_bytes));
  }
  sections.push_back(lines(comparison, &Quality::frame_psnr, {{"name", "PSNR"}, {"unit", "dB"}},
                           "PSNR per frame", "Against dense; no point where frames are identical"));
  if (!candidates.front()->runs.front().quality.frame_flicker.empty())  // a single frame has none
    sections.push_back(lines(comparison, &Quality::frame_flicker,
                             {{"name", "flicker"}, {"unit", "levels"}}, "Flicker per frame",
                             "Change of luma to the next frame, minus that of dense"));
  for (const CompareSubject* candidate : candidates) sections.push_back(heatmap(*candidate));
  sections.push_back(bars(comparison));
  const Request& r = task.request;
  Json report = make_report(fmt::format("Sparse against dense: {}, {} frames of {}x{}", model_name,
                                        r.frames, r.width, r.height),
                            summary(comparison), machine, settings(comparison, task, model_name),
                            std::move(sections));
  report["runs"] = every_run(comparison);
  // A prompt is a stranger's bytes; invalid UTF-8 is replaced instead of thrown at.
  return Json::parse(report.dump(-1, ' ', false, Json::error_handler_t::replace));
}

}  // namespace lacuna
