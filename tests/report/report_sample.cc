// SPDX-License-Identifier: Apache-2.0
// report_sample FOLDER: writes sample.html, a report with every kind of section and numbers of a
// believable run, and hostile.html, whose strings attack the page and whose sections are broken.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "lacuna/core/error.h"
#include "lacuna/core/rng.h"
#include "lacuna/models/video/video_writer.h"
#include "lacuna/report/page.h"
#include "lacuna/report/sprite.h"

namespace lacuna {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kSteps = 20, kLayers = 6, kHeads = 3, kBlocks = 36;
constexpr int kFrames = 32, kSize = 96, kSheetColumns = 8;

std::string png_uri(const std::vector<uint8_t>& rgb, int width, int height) {
  return "data:image/png;base64," + base64(encode_png({.width = width, .height = height}, rgb));
}

// One pixel of a disc that circles over a soft floor.
void disc_pixel(int t, int x, int y, double error, uint8_t* rgb) {
  const double turn = 2 * M_PI * t / kFrames;
  const double cx = 48 + 26 * std::sin(turn), cy = 46 + 14 * std::cos(turn);
  const auto glow = [](double far, double reach) { return std::clamp(1 - far / reach, 0.0, 1.0); };
  const double inside = std::clamp(17.5 - std::hypot(x - cx, y - cy), 0.0, 1.0);
  const double shadow = glow(std::hypot(x - cx - 3, (y - cy - 21) * 3), 26);
  const double shine = glow(std::hypot(x - cx + 6, y - cy + 7), 22);
  const double ground[3] = {0.62 + 0.0016 * y, 0.68 + 0.0012 * y, 0.74 - 0.0010 * y};
  const double disc[3] = {0.72 + 0.28 * shine, 0.18 + 0.5 * shine, 0.14 + 0.4 * shine};
  for (int c = 0; c < 3; ++c) {
    const double back = ground[c] * (1 - 0.35 * shadow);
    const double value = back + inside * (disc[c] - back) + error;
    rgb[c] = static_cast<uint8_t>(std::lround(255 * std::clamp(value, 0.0, 1.0)));
  }
}

// A sprite sheet; `noise` is what a method adds. Errors of skipped blocks are patches, not grain.
std::string disc_clip(const std::string& name, double noise) {
  const int width = kSheetColumns * kSize, height = kFrames / kSheetColumns * kSize;
  std::vector<uint8_t> rgb(size_t{3} * width * height);
  for (int t = 0; t < kFrames; ++t) {
    for (int y = 0; y < kSize; ++y) {
      for (int x = 0; x < kSize; ++x) {
        const size_t row = t / kSheetColumns * kSize + y, at = t % kSheetColumns * kSize + x;
        const double patch = hash_uniform(name, (t / 4 * 12 + y / 8) * 12 + x / 8);
        disc_pixel(t, x, y, noise * patch * (0.4 + 0.6 * t / kFrames),
                   &rgb[3 * (row * width + at)]);
      }
    }
  }
  return png_uri(rgb, width, height);
}

Json column(const char* key, const char* name, const char* unit, int digits, const char* help) {
  Json column{{"key", key}, {"name", name}};
  if (*unit) column["unit"] = unit;
  if (digits >= 0) column["digits"] = digits;
  if (*help) column["help"] = help;
  return column;
}

Json table_rows() {
  Json rows = Json::array();
  const auto add = [&](const char* method, Json density, Json rel_l1, Json psnr, Json ssim,
                       double seconds, Json selection) {
    rows.push_back({{"method", method},
                    {"density", density},
                    {"rel_l1", rel_l1},
                    {"psnr", psnr},
                    {"ssim", ssim},
                    {"seconds", seconds},
                    {"selection", selection},
                    {"speedup", 6.412 / seconds}});
  };
  add("dense", 1.0, 0.0, nullptr, 1.0, 6.412, nullptr);
  add("xattention", 0.2914, 0.021734, 33.871, 0.96214, 2.744, 11.31);
  add("svg2", 0.2486, 0.018206, 34.902, 0.97035, 2.961, 24.76);
  add("sparge", 0.4123, 0.015512, 35.667, 0.97521, 3.518, 6.42);
  add("radial", 0.3345, 0.041208, 28.114, 0.91877, 2.812, 0.03);
  add("svg", 0.3102, 0.036591, 29.450, 0.93012, 2.837, 4.87);
  add("adaspa", 0.2571, 0.027740, 31.906, 0.95108, 3.106, 31.12);
  add("window", 0.2500, 0.118932, 21.337, 0.80244, 2.301, 0.01);
  add("dense, other kernel", 1.0, 0.0000031, 71.204, 0.99998, 6.398, nullptr);
  rows.back()["floor"] = true;
  return rows;
}

Json table_section() {
  return {{"kind", "table"},
          {"title", "Methods"},
          {"note",
           "All from the same noise. A difference below the noise floor cannot be told from "
           "rounding."},
          {"columns",
           {column("method", "Method", "", -1, ""),
            column("density", "Density", "", 3, "Computed (query, key) pairs over all pairs."),
            column("rel_l1", "rel L1", "", 5,
                   "Sum of |x - dense| over sum of |dense|, of the attention outputs."),
            column("psnr", "PSNR", "dB", 2, "Of the decoded frames against dense."),
            column("ssim", "SSIM", "", 4, "Mean over frames, 1 = equal."),
            column("seconds", "Step", "s", 2, "Median wall time of one sampling step."),
            column("selection", "Selection", "ms", 2, "Choosing the blocks, per layer."),
            column("speedup", "Speed-up", "\u00d7", 2, "Of a whole step over dense.")}},
          {"rows", table_rows()}};
}

Json front_section() {
  const auto point = [](const char* name, double x, double y, bool front) {
    return Json{{"name", name}, {"x", x}, {"y", y}, {"front", front}};
  };
  return {{"kind", "front"},
          {"title", "Loss at each density"},
          {"note",
           "Left and down is better. The line joins the points that no other one beats in both."},
          {"x", {{"name", "density"}}},
          {"y", {{"name", "rel L1"}, {"log", true}}},
          {"better", "low"},
          {"points",
           {point("svg2 0.1", 0.104, 0.0631, true), point("svg2 0.2", 0.201, 0.0243, true),
            point("svg2 0.3", 0.298, 0.0149, true), point("xattention 0.1", 0.108, 0.0812, false),
            point("xattention 0.2", 0.203, 0.0307, false),
            point("xattention 0.3", 0.305, 0.0196, false),
            point("xattention 0.5", 0.502, 0.0061, true), point("adaspa 0.2", 0.197, 0.0334, false),
            point("adaspa 0.3", 0.301, 0.0212, false), point("sparge 0.3", 0.311, 0.0187, false),
            point("sparge 0.5", 0.497, 0.0079, true), point("svg 0.2", 0.208, 0.0702, false),
            point("svg 0.3", 0.299, 0.0391, false), point("radial 0.3", 0.334, 0.0412, false),
            point("radial 0.5", 0.481, 0.0183, false), point("window 0.1", 0.100, 0.2310, true),
            point("window 0.3", 0.300, 0.1181, false), point("dense", 1.0, 0.0, true)}}};
}

Json lines_section() {
  Json frames = Json::array(), floor = Json::array(), series = Json::array();
  for (int t = 0; t < kFrames; ++t) {
    frames.push_back(t);
    floor.push_back(46.9 + 0.3 * hash_uniform("floor", t));
  }
  const auto add = [&](const char* name, double mean, double fall, bool band) {
    Json values = Json::array(), low = Json::array(), high = Json::array();
    for (int t = 0; t < kFrames; ++t) {
      const double value =
          mean - fall * t / kFrames + 0.7 * std::sin(t * 0.5 + mean) + 0.35 * hash_uniform(name, t);
      values.push_back(value);
      low.push_back(value - 0.9 - 0.02 * t);
      high.push_back(value + 0.8 + 0.02 * t);
    }
    Json one{{"name", name}, {"values", values}};
    if (band) one.update({{"low", low}, {"high", high}});
    series.push_back(one);
  };
  add("xattention", 34.6, 1.5, true);
  add("svg2", 38.1, 1.2, true);
  add("sparge", 42.3, 1.0, false);
  add("radial", 28.9, 2.4, false);
  add("adaspa", 31.6, 0.9, false);
  series[3]["values"][11] = nullptr;
  return {{"kind", "lines"},
          {"title", "PSNR of each frame"},
          {"note", "Against the dense clip. Bands: the lowest and highest of five seeds."},
          {"x", {{"name", "frame"}, {"values", frames}}},
          {"y", {{"name", "PSNR"}, {"unit", "dB"}}},
          {"series", series},
          {"floor", {{"name", "dense, other kernel"}, {"values", floor}}}};
}

Json bars_section() {
  Json layers = Json::array(), selection = Json::array(), attention = Json::array(),
       rest = Json::array();
  for (int layer = 0; layer < kLayers; ++layer) {
    layers.push_back("layer " + std::to_string(layer));
    selection.push_back(11.3 + 3 * hash_uniform("selection", layer));
    attention.push_back(64 - 5.5 * layer + 6 * hash_uniform("attention", layer));
    rest.push_back(38.2 + hash_uniform("rest", layer));
  }
  return {{"kind", "bars"},
          {"title", "Where a step spends its time"},
          {"note", "xattention, medians over the sparse steps."},
          {"unit", "ms"},
          {"categories", layers},
          {"series",
           {{{"name", "selection"}, {"values", selection}},
            {{"name", "attention"}, {"values", attention}},
            {{"name", "the rest of the layer"}, {"values", rest}}}}};
}

// High in the first steps, low in the middle layers.
double density_at(int step, int layer, int head) {
  const double early = 1.0 / (1.0 + std::exp(0.35 * (step - 7)));
  const double share = 0.12 + 0.42 * early + 0.05 * std::abs(layer - 2.5) +
                       0.05 * hash_uniform("density", (step * kLayers + layer) * kHeads + head);
  return std::clamp(share, 0.05, 1.0);
}

Json heatmap_section() {
  Json values = Json::array(), layers = Json::array(), steps = Json::array();
  for (int step = 0; step < kSteps; ++step) steps.push_back(std::to_string(step));
  for (int layer = 0; layer < kLayers; ++layer) {
    layers.push_back(std::to_string(layer));
    Json line = Json::array();
    for (int step = 0; step < kSteps; ++step)
      line.push_back(step < 2 ? Json(1.0) : Json(density_at(step, layer, 0)));
    values.push_back(line);
  }
  values[4][13] = nullptr;
  return {{"kind", "heatmap"},
          {"title", "Density by layer and step"},
          {"note", "Steps 0 and 1 run dense."},
          {"rows", {{"name", "layer"}, {"labels", layers}}},
          {"columns", {{"name", "step"}, {"labels", steps}}},
          {"values", values},
          {"unit", "density"},
          {"min", 0},
          {"max", 1}};
}

// Bands at every frame distance, a sink column and a blob that moves with the step.
std::string mask_image(int step, int layer, int head) {
  const double width = 0.8 + 4 * density_at(step, layer, head);
  const int period = kBlocks / (head == 0 ? 4 : head == 1 ? 9 : 3);
  std::vector<uint8_t> bytes(size_t{kBlocks} * kBlocks);
  for (int q = 0; q < kBlocks; ++q) {
    for (int k = 0; k < kBlocks; ++k) {
      const int apart = std::abs(q - k) % period, bands = std::abs(q - k) / period;
      const double band = std::min(apart, period - apart) + 0.7 * bands;
      const double noise =
          0.7 * hash_uniform("mask", ((layer * kHeads + head) * kBlocks + q / 2) * kBlocks + k / 2);
      double share = std::clamp(width - band + noise, 0.0, 1.0);
      if (head == 2 && k < 2) share = 1;
      if (std::hypot(q - 24 - 0.3 * layer, k - 6.0 - 0.8 * step) < 1.2 + 0.4 * head) share = 1;
      bytes[static_cast<size_t>(q) * kBlocks + k] = static_cast<uint8_t>(std::lround(255 * share));
    }
  }
  return base64(bytes);
}

Json masks_section() {
  Json steps = Json::array(), layers = Json::array();
  Json images = Json::object(), notes = Json::object();
  for (int layer = 0; layer < kLayers; ++layer) layers.push_back(layer);
  for (int step = 0; step < kSteps; ++step) {
    steps.push_back(step);
    for (int layer = 0; layer < kLayers; ++layer) {
      const std::string site = std::to_string(step) + "/" + std::to_string(layer);
      const int made = step - (step - 2) % 4;  // the step of the mask in force
      notes[site] = step < 2 ? "dense by rule"
                             : fmt::format("{}, density {:.2f}",
                                           made == step ? "refreshed 3 of 3 heads" : "reused",
                                           density_at(made, layer, 0));
      for (int head = 0; head < kHeads && step >= 2; ++head) {
        if (layer == 5 && head == 1) continue;  // a head that stays dense
        images[site + "/" + std::to_string(head)] = mask_image(made, layer, head);
      }
    }
  }
  return {{"kind", "masks"},
          {"title", "Masks"},
          {"note", "Rows are query blocks, columns are key blocks. Click a mask to enlarge it."},
          {"steps", steps},
          {"layers", layers},
          {"heads", kHeads},
          {"rows", kBlocks},
          {"columns", kBlocks},
          {"images", images},
          {"notes", notes}};
}

Json player_section() {
  Json clips = Json::array();
  const auto add = [&](const char* name, double noise) {
    clips.push_back(
        {{"name", name}, {"columns", kSheetColumns}, {"image", disc_clip(name, noise)}});
  };
  add("dense", 0);
  add("xattention", 0.05);
  add("radial", 0.14);
  return {{"kind", "player"},          {"title", "Frames side by side"},
          {"note", "The same noise."}, {"fps", 16},
          {"frames", kFrames},         {"width", kSize},
          {"height", kSize},           {"clips", clips}};
}

Json text_section() {
  return {{"kind", "text"},
          {"title", "What was not measured"},
          {"paragraphs",
           {"One prompt and one seed say little about a method: the order of svg2 and sparge "
            "changes with the prompt. Run the comparison over a list of prompts before deciding.",
            "Times are of this machine with other work on it; densities and losses do not depend "
            "on it."}}};
}

Json sample() {
  return {{"lacuna_report", 1},
          {"command",
           "lacuna compare --model lacuna-shapes --prompt \"a red disc circles over a grey "
           "floor\" --methods xattention,svg2,sparge,radial,svg,adaspa,window --steps 20 --seed "
           "3141592653 "
           "--report compare.html"},
          {"title", "Seven sparse methods against dense attention"},
          {"summary",
           "svg2 loses least at a density of 0.25 (rel L1 0.018, PSNR 34.9 dB) and makes a step "
           "2.2 times as fast; xattention is 8 % faster at 0.004 more loss. radial and window "
           "change what the clip shows."},
          {"machine",
           {{"cpu", "AMD EPYC 7B13"},
            {"isa", "avx2"},
            {"threads", 2},
            {"memory", "7.8 GiB"},
            {"version", "0.1.0"},
            {"date", "2026-11-21T18:00:00Z"}}},
          {"settings",
           {{"model", "lacuna-shapes"},
            {"prompt", "a red disc circles over a grey floor"},
            {"size", "96 x 96, 32 frames"},
            {"steps", 20},
            {"guidance", 5.0},
            {"shift", 3.0},
            {"seed", "3141592653"},
            {"dense", "steps 0 to 1"},
            {"refresh", "every 4 steps"}}},
          {"sections",
           {table_section(), front_section(), lines_section(), bars_section(), heatmap_section(),
            masks_section(), player_section(), text_section()}}};
}

Json broken_sections() {
  Json sections = Json::array();
  sections.push_back({{"kind", "pie"}, {"title", "broken: pie"}});
  sections.push_back({{"kind", "constructor"}, {"title", "broken: constructor"}});
  sections.push_back({{"title", "broken: no kind"}});
  sections.push_back(nullptr);
  sections.push_back("text");
  for (Json broken : {table_section(), front_section(), lines_section(), bars_section(),
                      heatmap_section(), masks_section(), player_section(), text_section()}) {
    for (const char* key : {"rows", "points", "series", "values", "heads", "clips", "paragraphs"})
      if (broken.contains(key)) broken[key] = 7.5;
    broken["title"] = "broken: " + broken["kind"].get<std::string>();
    sections.push_back(broken);
  }
  return sections;
}

Json hostile() {
  const std::string attack =
      "</script><script>window.broken = 1</script><img src=x onerror=\"window.broken = 2\">"
      "{{data}}{{script}}";
  const std::string wide(400, 'W');
  Json table = table_section(), lines = lines_section(), masks = masks_section(),
       player = player_section();
  table["title"] = attack;
  table["columns"][0]["name"] = attack;
  table["columns"][1]["help"] = attack;
  table["rows"][0]["method"] = attack;
  table["rows"][1]["method"] = wide;
  lines["series"][0]["name"] = attack;
  lines["x"]["name"] = wide;
  lines["note"] = wide;
  masks["notes"]["0/0"] = attack;
  masks["images"]["0/1/0"] = "not base64 " + attack;
  player["fps"] = 1000;
  player["clips"][0]["name"] = attack;
  player["clips"][1]["image"] = "data:image/png;base64,AAAA";
  player["clips"][2]["image"] = "data:image/svg+xml,<svg onload=\"window.broken = 3\"/>";
  Json page = sample();
  page["title"] = attack;
  page["summary"] = attack + wide;
  page["command"] = attack + "\u2028\u2029<!--" + wide;
  page["settings"] = {{attack, attack}, {wide, wide}, {"__proto__", "x"}, {"list", {1, 2}}};
  page["sections"] = {table, lines, masks, player};
  for (const Json& section : broken_sections()) page["sections"].push_back(section);
  return page;
}

}  // namespace
}  // namespace lacuna

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "report_sample: %d arguments, expected FOLDER\n", argc - 1);
    return 2;
  }
  try {
    const std::filesystem::path folder = argv[1];
    std::filesystem::create_directories(folder);
    lacuna::write_report(folder / "sample.html", lacuna::sample());
    lacuna::write_report(folder / "hostile.html", lacuna::hostile());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "report_sample: %s\n", error.what());
    return 1;
  }
}
