// SPDX-License-Identifier: Apache-2.0
#include "lacuna/report/comparison.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "lacuna/core/error.h"
#include "lacuna/core/threads.h"
#include "lacuna/report/comparison_report.h"
#include "lacuna/report/machine_info.h"

namespace lacuna {
namespace {

constexpr char kSparse[] = "xattention:block=4,stride=4,top_p=0.3";

CompareCandidate candidate(const std::string& name, const std::string& attention) {
  CompareCandidate c{name, {}};
  c.request.attention = attention;
  return c;
}

CompareTask small_task() {
  CompareTask task;
  Request& r = task.request;
  r.width = 32, r.height = 48, r.frames = 5;  // 2 x 3 x 2 tokens
  r.sampler.num_steps = 2;
  r.guidance = r.guidance_low = 1.0;
  r.seed = 3;
  r.dtype = "f32";
  task.prompts = {"a red ball"};
  return task;
}

Comparison run(const CompareTask& task, const CompareHooks& hooks = {},
               const std::atomic<bool>* cancel = nullptr) {
  set_num_threads(1);  // so small that a second one only waits
  static const std::unique_ptr<Backend> backend = make_backend("cpu");
  static const std::unique_ptr<Model> model = Model::synthetic("tiny", DType::bf16);
  Context ctx{*backend};
  ctx.cancel = cancel;
  return compare_attention(*model, ctx, task, hooks);
}

// Dense again, every block kept, and really sparse; two floors, clips kept.
const Comparison& three() {
  static const Comparison result = [] {
    CompareTask task = small_task();
    task.candidates = {candidate("again", "dense"), candidate("full", "xattention:top_p=1"),
                       candidate("sparse", kSparse)};
    // Stands for other kernels: the oracle would take too long.
    static const std::unique_ptr<Backend> other = make_backend("cpu");
    task.other_backend = other.get();
    task.keep_clips = true;
    return run(task);
  }();
  return result;
}

TEST(Compare, DenseAgainIsDenseToTheLastBit) {
  const CompareMeasurement& again = three().subjects[1].runs.front();
  EXPECT_EQ(again.latents_error, 0.0);
  EXPECT_TRUE(std::isinf(again.quality.psnr));
  EXPECT_EQ(again.quality.ssim, 1.0);
  EXPECT_EQ(again.quality.flicker, 0.0);
  EXPECT_EQ(three().subjects[1].clip.rgb, three().subjects[0].clip.rgb);
  EXPECT_TRUE(within_floor(three(), three().subjects[1]));
}

TEST(Compare, FloorAndFullMaskAreOnlyRoundingAway) {
  const auto& subjects = three().subjects;
  ASSERT_EQ(subjects.size(), 6u);
  for (const size_t i : {2u, 4u, 5u}) {
    EXPECT_LT(subjects[i].runs.front().latents_error, 1e-5) << subjects[i].name;
    EXPECT_EQ(subjects[i].runs.front().qk_density, 1.0) << subjects[i].name;
  }
  EXPECT_EQ(subjects[4].role, CompareRole::floor);
  EXPECT_GT(subjects[4].runs.front().latents_error, 0.0);
  EXPECT_EQ(subjects[5].role, CompareRole::floor);
  EXPECT_EQ(subjects[5].runs.front().latents_error, 0.0);  // the same kernels, in fact
  EXPECT_THAT(subjects[5].name, testing::StartsWith("dense, cpu"));
}

TEST(Compare, SparseIsMeasured) {
  const CompareSubject& sparse = three().subjects[3];
  const CompareMeasurement& m = sparse.runs.front();
  EXPECT_GT(m.latents_error, 1e-4);
  EXPECT_TRUE(std::isfinite(m.quality.psnr));
  EXPECT_LT(m.qk_density, 0.95);
  EXPECT_FALSE(within_floor(three(), sparse));
  ASSERT_EQ(m.layers.size(), 4u);
  ASSERT_EQ(m.density.size(), 4u);
  double density = 0.0, attend_ms = 0.0, select_ms = 0.0;
  for (size_t l = 0; l < 4; ++l) {
    ASSERT_EQ(m.density[l].size(), 2u);
    for (const double d : m.density[l]) density += d / 8;
    attend_ms += m.layers[l].attend_ms;
    select_ms += m.layers[l].select_ms;
  }
  EXPECT_NEAR(density, m.pv_density, 1e-12);
  EXPECT_NEAR(attend_ms, m.attend_ms, 1e-9);
  EXPECT_NEAR(select_ms, m.select_ms, 1e-9);
  const CompareMeasurement& dense = three().subjects[0].runs.front();
  EXPECT_DOUBLE_EQ(m.speedup, dense.sample_seconds / m.sample_seconds);
  EXPECT_DOUBLE_EQ(m.selection_share, m.select_ms / dense.attend_ms);
  EXPECT_LE(m.step_ms * 2, m.sample_seconds * 1000);
  EXPECT_EQ(sparse.clip.frames(), 5);
  const Quality again = compare_frames(three().subjects[0].clip, sparse.clip);
  EXPECT_EQ(again.frame_psnr, m.quality.frame_psnr);
}

TEST(Compare, OtherThreadsGiveTheSameBytes) {
  set_num_threads(1);
  const int before = num_threads();
  const ThreadCheck check = three().threads.value();
  EXPECT_TRUE(check.identical);
  EXPECT_NE(check.threads, check.other_threads);
  EXPECT_EQ(check.steps, 2);
  EXPECT_EQ(num_threads(), before);
}

// The second pair of a task runs in the opposite order; its numbers must not know.
TEST(Compare, RunsArePromptsTimesSeedsAndStandAlone) {
  CompareTask task = small_task();
  task.floor = false;
  task.request.sampler.num_steps = 1;
  task.candidates = {candidate("sparse", kSparse), candidate("window", "window")};
  task.prompts = {"a red ball", "a blue box"};
  task.seeds = 2;
  std::vector<int64_t> done;
  int64_t units = 0;
  CompareHooks hooks;
  hooks.progress = [&](int64_t d, int64_t total, const std::string&) {
    done.push_back(d);
    units = total;
  };
  const Comparison all = run(task, hooks);
  EXPECT_FALSE(all.threads.has_value());
  ASSERT_EQ(all.subjects.size(), 3u);
  EXPECT_EQ(units, 4 * 3 * 2);
  EXPECT_EQ(done.size(), 24u);
  EXPECT_EQ(done.back(), units);
  CompareTask one = task;
  one.prompts = {"a blue box"};
  one.request.seed = 4;
  one.seeds = 1;
  const Comparison last = run(one);
  for (size_t i = 1; i < 3; ++i) {
    ASSERT_EQ(all.subjects[i].runs.size(), 4u);
    const CompareMeasurement &a = all.subjects[i].runs[3], &b = last.subjects[i].runs[0];
    EXPECT_EQ(a.latents_error, b.latents_error);
    EXPECT_EQ(a.quality.frame_psnr, b.quality.frame_psnr);
    EXPECT_EQ(a.density, b.density);
  }
  const auto& runs = all.subjects[1].runs;
  EXPECT_NE(runs[0].latents_error, runs[1].latents_error);
  EXPECT_NE(runs[0].latents_error, runs[2].latents_error);
}

TEST(Compare, RefusesBeforeAnyWork) {
  const auto refuses = [](const std::string& says, auto change) {
    CompareTask task = small_task();
    task.candidates = {candidate("sparse", kSparse)};
    change(task);
    bool worked = false;
    CompareHooks hooks;
    hooks.progress = [&](int64_t, int64_t, const std::string&) { worked = true; };
    try {
      run(task, hooks);
      FAIL() << says;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), testing::HasSubstr(says));
    }
    EXPECT_FALSE(worked);
  };
  refuses("no prompt", [](CompareTask& t) { t.prompts.clear(); });
  refuses("0 seeds", [](CompareTask& t) { t.seeds = 0; });
  refuses("no candidate", [](CompareTask& t) { t.candidates.clear(); });
  refuses("'sparse'", [](CompareTask& t) { t.candidates.push_back(t.candidates[0]); });
  refuses("'dense'", [](CompareTask& t) { t.candidates[0].name = "dense"; });
  refuses("magic", [](CompareTask& t) { t.candidates[0].request.attention = "magic"; });
  refuses("index list", [](CompareTask& t) { t.candidates[0].request.dense_steps = "x"; });
  refuses("multiples", [](CompareTask& t) { t.request.width = 100; });
}

// 32760 tokens of 256 f32 channels: q, k, v and out are 0.125 GiB, which whoever moves tokens holds
// twice; so does the floor.
TEST(Compare, PlansForTheSubjectThatNeedsMost) {
  const auto activations = [](const std::string& attention, bool floor) {
    CompareTask task = small_task();
    task.request.width = 832, task.request.height = 480, task.request.frames = 81;
    task.floor = floor;
    task.candidates = {candidate("candidate", attention)};
    std::string note;
    CompareHooks hooks;
    hooks.note = [&](const std::string& line) {
      note = line;
      throw Cancelled();  // the plan is all that is asked
    };
    EXPECT_THROW(run(task, hooks), Cancelled);
    const std::string before = "activations ";
    return std::stod(note.substr(note.find(before) + before.size()));
  };
  const double raster = activations(kSparse, false);
  EXPECT_NEAR(activations("window", false) - raster, 0.125, 0.02);
  EXPECT_NEAR(activations(kSparse, true) - raster, 0.125, 0.03);
}

TEST(Compare, StopsWhenAsked) {
  CompareTask task = small_task();
  task.floor = false;
  task.candidates = {candidate("sparse", kSparse)};
  for (const int64_t at : {1, 5}) {  // while sampling, while decoding
    std::atomic<bool> cancel{false};
    int64_t last = 0;
    CompareHooks hooks;
    hooks.progress = [&](int64_t done, int64_t, const std::string&) {
      last = done;
      cancel = done == at;
    };
    EXPECT_THROW(run(task, hooks, &cancel), Cancelled);
    EXPECT_EQ(last, at);
  }
}

TEST(Spread, IsThatOfASample) {
  const double inf = std::numeric_limits<double>::infinity();
  const Spread s = spread_of({3, 1, inf, 2});
  EXPECT_EQ(s.mean, 2.0);
  EXPECT_EQ(s.deviation, 1.0);  // squares 1 + 1 + 0 over n - 1 = 2
  EXPECT_EQ(s.low, 1.0);
  EXPECT_EQ(s.high, 3.0);
  EXPECT_EQ(s.count, 3);
  EXPECT_EQ(s.infinite, 1);
  EXPECT_TRUE(std::isnan(spread_of({5}).deviation));
  EXPECT_EQ(spread_of({5}).mean, 5.0);
  EXPECT_TRUE(std::isnan(spread_of({inf}).mean));
  EXPECT_EQ(spread_of({}).count, 0);
}

nlohmann::ordered_json report_of(const Comparison& comparison, const CompareTask& task,
                                 size_t pictures) {
  return comparison_report(comparison, task, "tiny", {{"cpu", "x"}}, pictures);
}

TEST(CompareReport, HasEverySection) {
  CompareTask task = small_task();
  task.prompts = {"bytes \xff of a stranger"};
  const auto report = report_of(three(), task, 1 << 20);
  EXPECT_EQ(report["lacuna_report"], 1);
  EXPECT_EQ(report["command"], command_line());
  EXPECT_EQ(report["settings"]["seeds"], "3");
  std::vector<std::string> kinds;
  for (const auto& section : report["sections"]) kinds.push_back(section["kind"]);
  EXPECT_THAT(kinds, testing::ElementsAre("table", "table", "text", "player", "lines", "lines",
                                          "heatmap", "heatmap", "heatmap", "bars"));
  const auto& quality = report["sections"][0];
  ASSERT_EQ(quality["rows"].size(), 5u);  // three candidates, two floors
  EXPECT_EQ(quality["rows"][0]["psnr"], "identical");
  EXPECT_EQ(quality["rows"][0]["latents_error"], 0.0);
  EXPECT_EQ(quality["rows"][2]["psnr"], three().subjects[3].runs[0].quality.psnr);
  EXPECT_FALSE(quality["rows"][2].contains("floor"));
  EXPECT_EQ(quality["rows"][4]["floor"], true);
  const auto& cost = report["sections"][1];
  ASSERT_EQ(cost["rows"].size(), 6u);
  EXPECT_EQ(cost["rows"][0]["name"], "dense");
  EXPECT_EQ(cost["rows"][0]["speedup"], 1.0);
  for (const auto& table : {quality, cost})
    for (const auto& column : table["columns"]) {
      EXPECT_FALSE(column["key"].get<std::string>().ends_with("_sd"));  // one run has no spread
      for (const auto& row : table["rows"])
        EXPECT_TRUE(row.contains(column["key"].get<std::string>())) << column.dump();
    }
  const auto& player = report["sections"][3];
  EXPECT_EQ(player["clips"].size(), 4u);
  EXPECT_EQ(player["clips"][0]["name"], "dense");
  EXPECT_EQ(player["frames"], 5);
  const auto& psnr = report["sections"][4];
  EXPECT_EQ(psnr["x"]["values"].size(), 5u);
  EXPECT_EQ(psnr["series"].size(), 3u);
  EXPECT_TRUE(psnr["series"][0]["values"][0].is_null());
  EXPECT_EQ(psnr["floor"]["values"].size(), 5u);
  EXPECT_EQ(report["sections"][5]["series"][2]["values"].size(), 4u);
  const auto& heatmap = report["sections"][8];
  EXPECT_EQ(heatmap["values"].size(), 4u);
  EXPECT_EQ(heatmap["values"][1].size(), 2u);
  EXPECT_EQ(heatmap["columns"]["labels"].size(), 2u);
  const auto& bars = report["sections"][9];
  EXPECT_EQ(bars["categories"].size(), 16u);  // four layers, dense and three candidates
  EXPECT_EQ(bars["series"][1]["values"].size(), 16u);
  EXPECT_THAT(report["summary"].get<std::string>(), testing::HasSubstr("within that floor: again"));
  const std::string floor = report["sections"][2].dump();
  EXPECT_THAT(floor, testing::HasSubstr("sparse is outside the noise floor"));
  EXPECT_THAT(floor, testing::HasSubstr("identical bit for bit"));
}

// Every column from the field it is named after: all of them differ.
TEST(CompareReport, EveryMetricHasItsOwnValue) {
  CompareMeasurement m;
  m.quality.psnr = 31.0, m.quality.ssim = 0.5, m.quality.flicker = 0.25;
  m.quality.frame_psnr = {31.0};
  m.latents_error = 0.125;
  m.step_ms = 100.0, m.attend_ms = 60.0, m.select_ms = 6.0;
  m.qk_density = 0.75, m.pv_density = 0.625;
  m.speedup = 1.5, m.selection_share = 0.0625;
  m.layers.resize(1);
  m.density = {{0.5}};
  Comparison comparison;
  comparison.subjects = {{"dense", CompareRole::dense, {m}, {}},
                         {"a", CompareRole::candidate, {m}, {}}};
  const std::map<std::string, double> quality = {
      {"psnr", 31.0}, {"ssim", 0.5}, {"flicker", 0.25}, {"latents_error", 0.125}};
  const std::map<std::string, double> cost = {{"step_ms", 100.0},         {"attention_ms", 60.0},
                                              {"selection_ms", 6.0},      {"qk_density", 0.75},
                                              {"pv_density", 0.625},      {"speedup", 1.5},
                                              {"selection_share", 0.0625}};
  const auto report = report_of(comparison, small_task(), 0);
  const auto expect_all = [&](const std::map<std::string, double>& values, size_t section) {
    const auto& table = report["sections"][section];
    EXPECT_EQ(table["columns"].size(), values.size() + 1) << "name and metrics";
    for (const auto& [key, value] : values) {
      EXPECT_EQ(table["rows"].back()[key], value) << key;
      EXPECT_EQ(report["runs"][1][key], std::vector<double>{value}) << key;
    }
  };
  expect_all(quality, 0);
  expect_all(cost, 1);
}

TEST(CompareReport, ASingleFrameHasNoFlicker) {
  Comparison comparison;
  comparison.subjects = {{"dense", CompareRole::dense, {}, {}},
                         {"a", CompareRole::candidate, {}, {}}};
  CompareMeasurement m;
  m.quality.frame_psnr = {20.0};
  m.layers.resize(1);
  m.density = {{0.5}};
  for (CompareSubject& subject : comparison.subjects) subject.runs.push_back(m);
  const auto report = report_of(comparison, small_task(), 0);
  for (const auto& section : report["sections"]) {
    if (section["kind"] != "lines") continue;
    EXPECT_FALSE(section["x"]["values"].empty()) << section["title"];
  }
}

TEST(CompareReport, WithinTheFloorIsNoFartherThanTheWorstFloorInBoth) {
  const auto subject = [](const char* name, CompareRole role, double psnr, double error) {
    CompareMeasurement m;
    m.quality.psnr = psnr;
    m.latents_error = error;
    return CompareSubject{name, role, {m}, {}};
  };
  const auto within = [&](double psnr, double error) {
    Comparison comparison;
    comparison.subjects = {subject("dense", CompareRole::dense, 0.0, 0.0),
                           subject("a", CompareRole::candidate, psnr, error),
                           subject("near", CompareRole::floor, 60.0, 1e-4),
                           subject("far", CompareRole::floor, 50.0, 1e-3)};
    return within_floor(comparison, comparison.subjects[1]);
  };
  EXPECT_TRUE(within(50.0, 1e-3));
  EXPECT_TRUE(within(55.0, 5e-4));
  EXPECT_FALSE(within(49.9, 1e-4));
  EXPECT_FALSE(within(70.0, 1.1e-3));
}

// A mean of PSNR leaves identical runs out: it would judge by the others alone.
TEST(CompareReport, IdenticalRunsCountForTheFloor) {
  const double inf = std::numeric_limits<double>::infinity();
  const auto subject = [](const char* name, CompareRole role, std::vector<double> psnr) {
    CompareSubject made{name, role, {}, {}};
    for (const double value : psnr) {
      CompareMeasurement m;
      m.quality.psnr = value;
      m.layers.resize(1);
      m.density = {{0.5}};
      made.runs.push_back(std::move(m));
    }
    return made;
  };
  const auto judged = [&](const std::vector<double>& a, const std::vector<double>& b,
                          const std::vector<double>& floor) {
    Comparison comparison;
    comparison.subjects = {
        subject("dense", CompareRole::dense, {0, 0, 0, 0}), subject("a", CompareRole::candidate, a),
        subject("b", CompareRole::candidate, b), subject("floor", CompareRole::floor, floor)};
    comparison.subjects[2].runs[0].speedup = 2.0;
    const auto report = report_of(comparison, small_task(), 0);
    return report["summary"].get<std::string>();
  };
  const std::vector<double> even(4, 50.0), lower(4, 49.0);
  // One run at 45 dB and three at none are 51 dB.
  EXPECT_THAT(judged({inf, inf, 45.0, inf}, lower, even),
              testing::HasSubstr("within that floor: a."));
  EXPECT_THAT(judged({inf, inf, 45.0, inf}, lower, even), testing::HasSubstr("to dense is a:"));
  EXPECT_THAT(judged({inf, inf, 20.0, inf}, lower, even),
              testing::HasSubstr("within that floor: none."));
  EXPECT_THAT(judged(even, lower, {inf, inf, 45.0, inf}),
              testing::HasSubstr("within that floor: none."));
  EXPECT_THAT(judged({inf, inf, inf, inf}, lower, even),
              testing::HasSubstr("within that floor: a."));
}

TEST(CompareReport, RunsThatAreIdenticalAreCounted) {
  Comparison comparison;
  comparison.subjects = {{"dense", CompareRole::dense, {}, {}},
                         {"a", CompareRole::candidate, {}, {}},
                         {"floor", CompareRole::floor, {}, {}}};
  const double same = std::numeric_limits<double>::infinity();
  for (const double psnr : {same, 52.0, same}) {
    CompareMeasurement m;
    m.layers.resize(1);
    m.density = {{0.5}};
    comparison.subjects[0].runs.push_back(m);
    m.quality.psnr = 40.0;
    m.quality.frame_psnr = {40.0};
    comparison.subjects[1].runs.push_back(m);
    m.quality.psnr = psnr;
    m.quality.frame_psnr = {psnr};
    comparison.subjects[2].runs.push_back(m);
  }
  const auto report = report_of(comparison, small_task(), 0);
  const auto& quality = report["sections"][0];
  EXPECT_EQ(quality["columns"].back()["key"], "identical_runs");
  EXPECT_EQ(quality["rows"][0]["identical_runs"], 0);
  EXPECT_EQ(quality["rows"][1]["identical_runs"], 2);
  EXPECT_FALSE(report["sections"][1]["rows"][0].contains("identical_runs")) << "cost";
  EXPECT_EQ(report["runs"][0]["speedup"].size(), 3u) << "dense has costs";
  EXPECT_THAT(report["summary"].get<std::string>(),
              testing::HasSubstr("PSNR 52.0 dB (identical in 2 of 3)"));
  EXPECT_FALSE(report["runs"][0].contains("psnr")) << "dense against itself";
  EXPECT_TRUE(report["runs"][2]["psnr"][0].is_null());
}

TEST(CompareReport, SpreadOverRuns) {
  Comparison comparison;
  comparison.subjects = {{"dense", CompareRole::dense, {}, {}},
                         {"a", CompareRole::candidate, {}, {}}};
  for (const double psnr : {20.0, 24.0}) {
    CompareMeasurement m;
    m.quality.psnr = psnr;
    m.quality.frame_psnr = {psnr, psnr + 1};
    m.quality.frame_flicker = {0.5};
    m.speedup = psnr / 10;
    m.layers.resize(1);
    m.density = {{0.25, 0.75}};
    for (CompareSubject& subject : comparison.subjects) subject.runs.push_back(m);
  }
  const auto report = report_of(comparison, small_task(), 1 << 20);
  const auto& row = report["sections"][0]["rows"][0];
  EXPECT_EQ(row["psnr"], 22.0);
  EXPECT_DOUBLE_EQ(row["psnr_sd"], std::sqrt(8.0));
  EXPECT_EQ(row["psnr_min"], 20.0);
  EXPECT_EQ(report["runs"][1]["name"], "a");
  EXPECT_EQ(report["runs"][1]["psnr"], std::vector<double>({20.0, 24.0}));
  std::set<std::string> keys;
  for (const auto& section : {report["sections"][0], report["sections"][1]})
    for (const auto& column : section["columns"]) keys.insert(column["key"]);
  for (const char* key : {"psnr_sd", "psnr_min", "flicker_max", "speedup_min", "step_ms_sd"})
    EXPECT_TRUE(keys.contains(key)) << key;
  const auto& lines = report["sections"][2];  // no floor, no clips
  EXPECT_EQ(lines["kind"], "lines");
  EXPECT_FALSE(lines.contains("floor"));
  EXPECT_EQ(lines["series"][0]["values"], (std::vector<double>{22, 23}));
  EXPECT_EQ(lines["series"][0]["low"], (std::vector<double>{20, 21}));
  EXPECT_EQ(lines["series"][0]["high"], (std::vector<double>{24, 25}));
  EXPECT_EQ(clip_label(comparison.subjects[1]),
            (std::vector<std::string>{"a", "PSNR 22.0 dB  PV 1.000  2.20x"}));
  EXPECT_FALSE(within_floor(comparison, comparison.subjects[1]));
}

// Text tokens stand in attention, and their number differs between prompts and branches.
TEST(Compare, MeasuresTheFloorOfFamiliesWhoseTextIsInAttention) {
  for (const char* preset : {"mochi-tiny", "hunyuanvideo-tiny"}) {
    const auto backend = make_backend("cpu");
    const auto model = Model::synthetic(preset, DType::bf16);
    CompareTask task = small_task();
    task.request.frames = model->architecture().family() == "mochi" ? 7 : 5;
    task.request.guidance = task.request.guidance_low = 3.0;
    task.request.negative_prompt = "dull and grey, without any motion at all";
    task.prompts = {"a red ball", "a cat walks over wet grass and looks at the camera"};
    task.candidates = {candidate("full", "xattention:top_p=1,block=4,stride=4")};
    Context ctx{*backend};
    const Comparison result = compare_attention(*model, ctx, task, {});
    ASSERT_EQ(result.subjects.size(), 3u) << preset;
    for (const size_t i : {1u, 2u})
      for (const CompareMeasurement& m : result.subjects[i].runs)
        EXPECT_LT(m.latents_error, 1e-5) << preset << ' ' << result.subjects[i].name;
  }
}

}  // namespace
}  // namespace lacuna
