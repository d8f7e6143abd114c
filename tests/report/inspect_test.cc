// SPDX-License-Identifier: Apache-2.0
#include "lacuna/report/inspect.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "lacuna/core/error.h"
#include "lacuna/engine/engine.h"
#include "lacuna/engine/mask_log.h"
#include "lacuna/engine/recording.h"
#include "lacuna/engine/trace_file.h"
#include "lacuna/report/manifest.h"
#include "lacuna/report/sections.h"
#include "lacuna/report/text.h"
#include "tests/methods/fixtures.h"
#include "tests/support/temp_folder.h"

namespace lacuna::test {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr int kSteps = 3, kLayers = 2;

// A small run with its trace, masks and inputs on disk.
class InspectTest : public testing::Test {
 protected:
  void SetUp() override {
    const Shape shape{{4, 8, 8}, 0, 2};
    target_ = {"toy", "abc", kLayers, 2, 32, shape.grid, 0, {1.0, 0.5, 0.25}};
    Policy policy =
        make_policy(parse_plan("xattention:block=16,stride=4,top_p=0.5,refresh=at_steps,at=2"), {},
                    "1", "", 0, kSteps);
    Engine engine(*backend_, policy);
    MaskRecorder masks(target_, 1 << 24);
    Recorder inputs(*backend_, parse_record_sites("steps=0,2"), 1 << 24);
    engine.watch_selections([&](const auto&... seen) { masks.add(seen...); });
    engine.watch_inputs([&](const auto&... seen) { inputs.add(seen...); });
    for (int step = 0; step < kSteps; ++step)
      for (int layer = 0; layer < kLayers; ++layer) {
        const Input in = make_input(shape, "layer" + std::to_string(layer));
        engine.attend({step, kSteps, static_cast<float>(target_.sigmas[step]), layer, kLayers},
                      shape.grid, 0, in.q, in.k, in.v, in.out);
      }
    RunHeader header;
    header.version = "0.1.0";
    header.machine = {{"backend", "ref"}};
    header.request = {{"prompt", "a ball"}, {"steps", kSteps}};
    header.target = target_;
    header.rules = {"dense", "xattention:top_p=0.5"};
    save_trace(trace_ = folder_ / "trace.json", header, engine.trace());
    masks.save(masks_ = folder_ / "masks.safetensors");
    inputs.save(inputs_ = folder_ / "qkv.safetensors");
    entries_ = engine.trace().entries();
  }

  Json look(std::initializer_list<fs::path> files) const {
    const std::vector<fs::path> list(files);
    return inspect(list, *backend_);
  }
  static const Json& section(const Json& report, const std::string& title) {
    for (const Json& s : report["sections"])
      if (s["title"] == title) return s;
    ADD_FAILURE() << "no section " << title;
    return report;
  }

  const std::unique_ptr<Backend> backend_ = make_backend("ref");
  ProfileTarget target_;
  const TempFolder temp_;
  const fs::path folder_ = temp_.path();
  fs::path trace_, masks_, inputs_;
  std::vector<TraceEntry> entries_;
};

TEST_F(InspectTest, TraceFiguresAreThoseOfTheCalls) {
  const Json report = look({trace_});
  EXPECT_EQ(report["lacuna_report"], 1);
  EXPECT_EQ(report["machine"]["backend"], "ref");
  EXPECT_EQ(report["settings"]["prompt"], "a ball");
  const Json& map = section(report, "Density");
  EXPECT_EQ(map["values"][1][0], 1.0);
  EXPECT_EQ(map["values"][1][2], entries_[5].pv_density);
  const Json& refreshed = section(report, "Refreshed heads");
  EXPECT_TRUE(refreshed["values"][0][0].is_null()) << "dense calls refresh nothing";
  EXPECT_EQ(refreshed["values"][0][1], 1.0);
  EXPECT_EQ(refreshed["values"][0][2], 1.0);
  EXPECT_EQ(section(report, "What ran where")["rows"][0]["why"], "dense-steps");
  EXPECT_EQ(section(report, "Time per layer")["categories"].size(), 2u);
}

TEST_F(InspectTest, MasksShowHeadsAndPictures) {
  const Json report = look({masks_, trace_});
  EXPECT_NO_THROW(section(report, "Density"));
  const Json& density = section(report, "Density per head");
  EXPECT_EQ(density["rows"]["labels"], (Json{"0.0", "0.1", "1.0", "1.1"}));
  EXPECT_EQ(density["values"][0][0], 1.0);
  const double mean =
      (density["values"][2][1].get<double>() + density["values"][3][1].get<double>()) / 2;
  EXPECT_NEAR(mean, entries_[3].qk_density, 1e-12);
  EXPECT_EQ(section(report, "Heads")["rows"].size(), 4u);
  const Json& alike = section(report, "How alike masks are");
  EXPECT_TRUE(alike["values"][0][0].is_null());
  EXPECT_LT(alike["values"][0][1], 1.0) << "dense, then sparse";
  EXPECT_EQ(alike["values"][0][2], 1.0) << "the same inputs again";
  const Json& gallery = section(report, "Masks");
  EXPECT_FALSE(gallery["images"].contains("0/0/0")) << "dense";
  const int64_t side = gallery["rows"];
  EXPECT_EQ(gallery["images"]["2/1/0"].get<std::string>().size(),
            static_cast<size_t>((side * side + 2) / 3 * 4));
  EXPECT_THAT(gallery["notes"]["2/1"].get<std::string>(), HasSubstr("refreshed 2 of 2 heads"));
  EXPECT_THAT(gallery["notes"]["0/1"].get<std::string>(), HasSubstr("dense-steps"));
}

TEST_F(InspectTest, RecordingsShowWhatRecallNeeds) {
  const Json report = look({inputs_});
  const Json& rows = section(report, "Density that recall needs")["rows"];
  ASSERT_EQ(rows.size(), 2u * 2 * 2);
  for (const Json& row : rows) {
    EXPECT_LE(row["d90"], row["d95"]);
    EXPECT_LE(row["d95"], row["d99"]);
    EXPECT_GE(row["d90"], 0.25) << "one block of four at least";
    EXPECT_LE(row["d99"], 1.0);
  }
  EXPECT_EQ(section(report, "Block mass")["images"].size(), 8u);
  EXPECT_EQ(section(report, "How alike masks are")["values"][0][1], 1.0);
}

// 720 heads, more than there are pictures for: those that are left out are whole steps or layers.
TEST_F(InspectTest, BlockMassHasAPictureForEveryHeadItNames) {
  const Tensor x = Tensor::zeros(DType::f32, {12, 64, 4});
  Recorder recorder(*backend_, {}, 1 << 24);
  for (int step = 0; step < 2; ++step)
    for (int layer = 0; layer < 30; ++layer)
      recorder.add({.step = step, .num_steps = 2, .layer = layer, .num_layers = 30}, {1, 8, 8}, 0,
                   x, x, x);
  recorder.save(inputs_);
  const Json report = look({inputs_});
  const Json& mass = section(report, "Block mass");
  EXPECT_EQ(mass["layers"].size(), 30u);
  EXPECT_EQ(mass["steps"].size(), 1u);
  EXPECT_EQ(mass["steps"][0], 0);
  EXPECT_EQ(mass["heads"], 12);
  EXPECT_EQ(mass["images"].size(), 30u * 12);
  EXPECT_TRUE(mass["images"].contains("0/29/11"));
  EXPECT_THAT(mass["note"].get<std::string>(), HasSubstr("1 of 2 steps, 30 of 30 layers"));
}

// 80 blocks, two to a pixel: all mass in the first block is still the most of its row.
TEST_F(InspectTest, BlockMassOfALongCallIsRelativeToItsRow) {
  const VideoGrid grid{1, 64, 80};
  const Tensor q = Tensor::zeros(DType::f32, {1, grid.tokens(), 4}),
               k = Tensor::zeros(DType::f32, {1, grid.tokens(), 4});
  for (int64_t token = 0; token < grid.tokens(); ++token) {
    q.as<float>()[4 * token] = 8.0f;
    if (token < 64) k.as<float>()[4 * token] = 8.0f;
  }
  Recorder recorder(*backend_, {}, 1 << 24);
  recorder.add({.step = 0, .num_steps = 1, .layer = 0, .num_layers = 1}, grid, 0, q, k, k);
  recorder.save(inputs_);
  const Json report = look({inputs_});
  const Json& mass = section(report, "Block mass");
  EXPECT_EQ(mass["rows"], 40);
  EXPECT_EQ(mass["images"]["0/0/0"].get<std::string>().substr(0, 2), "/w") << "255, then 0";
  EXPECT_EQ(mass["unit"], "mass of the row's largest");
}

TEST_F(InspectTest, ProfilesShowRulesAndFixedMasks) {
  auto masks = std::make_shared<Selection>();
  masks->q_layout = masks->k_layout = BlockLayout::uniform(256, 32);
  masks->mask = BlockMask(2, 8, 8);
  masks->mask.keep_k_blocks(0, 2);
  Profile profile;
  profile.target = target_;
  Rule rule;
  rule.match.layers = {1};
  rule.plan = parse_plan("fixed");
  rule.plan.fixed = masks;
  profile.rules.push_back({rule, 0.25});
  const fs::path path = folder_ / "p.profile.json";
  save_profile(profile, path);
  const Json report = look({path});
  EXPECT_EQ(section(report, "Rules")["rows"][0]["what"], "fixed");
  EXPECT_EQ(section(report, "Rules")["rows"][0]["layers"], "1");
  EXPECT_EQ(section(report, "Heads")["rows"][1]["kind"], "sink");
  EXPECT_EQ(section(report, "Masks")["images"].size(), 2u);
}

// Layer 0 changes at step 2, layer 1 keeps its mask; the dense rule comes first.
TEST_F(InspectTest, ProfilesShowTheMasksInForce) {
  Profile profile;
  profile.target = target_;
  const auto add = [&](int begin, int end, int layer, int kept) {
    ProfileRule item;
    item.rule.match.step_begin = begin;
    item.rule.match.step_end = end;
    if (kept == 0) {
      item.rule.reason = "dense-steps";
    } else {
      item.rule.match.layers = {layer};
      auto masks = std::make_shared<Selection>();
      masks->q_layout = masks->k_layout = BlockLayout::uniform(256, 32);
      masks->mask = BlockMask(2, 8, 8);
      masks->mask.keep_k_blocks(0, kept);
      item.rule.plan = parse_plan("fixed");
      item.rule.plan.fixed = masks;
    }
    profile.rules.push_back(std::move(item));
  };
  add(0, 1, 0, 0);
  add(0, 2, 0, 2);
  add(2, 3, 0, 4);
  add(0, 3, 1, 6);
  const fs::path path = folder_ / "p.profile.json";
  save_profile(profile, path);
  const Json report = look({path});
  const Json& density = section(report, "Density per head");
  EXPECT_EQ(density["columns"]["labels"], (Json{"1", "2"})) << "step 0 is dense";
  EXPECT_EQ(density["values"][0], (Json{0.25, 0.5}));
  EXPECT_EQ(density["values"][2], (Json{0.75, 0.75}));
  const Json& gallery = section(report, "Masks");
  EXPECT_TRUE(gallery["images"].contains("2/1/0")) << "in force since step 1";
  EXPECT_EQ(gallery["notes"]["2/1"], "rule 3");
}

TEST_F(InspectTest, ALookIsNoRefreshOfASparseHead) {
  const RunHeader header = load_trace(trace_).header;
  TraceEntry looks, reuses;
  looks.method = reuses.method = "adaspa";
  looks.site.num_steps = reuses.site.num_steps = kSteps;
  looks.num_heads = looks.heads_refreshed = reuses.num_heads = 2;
  looks.reason = "look";
  reuses.site.step = 1;
  Trace trace;
  trace.add(looks);
  trace.add(reuses);
  save_trace(trace_, header, trace);
  const Json report = look({trace_});
  EXPECT_EQ(section(report, "Layers")["rows"][0]["refreshed"], 0.0);
}

TEST_F(InspectTest, ATraceWithoutCallsHasNoFigures) {
  save_trace(trace_, load_trace(trace_).header, Trace());
  const Json report = look({trace_});
  ASSERT_EQ(report["sections"].size(), 1u);
  EXPECT_EQ(report["sections"][0]["kind"], "text");
}

TEST_F(InspectTest, LoraOfATraceIsShownWhateverItHolds) {
  TraceFile trace = load_trace(trace_);
  trace.header.request["lora"] = {"a.safetensors:1", 7, {{"b", nullptr}}};
  trace.header.request["lora_low"] = {"c.safetensors:0.5"};
  save_trace(trace_, trace.header, Trace());
  const Json settings = look({trace_})["settings"];
  EXPECT_EQ(settings["lora"], R"(a.safetensors:1, 7, {"b":null})");
  EXPECT_EQ(settings["lora_low"], "c.safetensors:0.5");
}

TEST_F(InspectTest, OneLineForWhatItIsNot) {
  const auto error = [&](const std::string& text) {
    const fs::path path = folder_ / "x";
    std::ofstream(path, std::ios::binary) << text;
    const std::string message = error_of([&] { look({path}); });
    EXPECT_NE(message, "");
    EXPECT_EQ(message.find('\n'), message.npos);
    return message;
  };
  error("");
  error("x");
  error("{\"lacuna_trace\": ");
  EXPECT_THAT(error("{\"a\": 1}"), HasSubstr("neither a trace nor a profile"));
  EXPECT_THAT(error("{\"lacuna_trace\": 7}"), HasSubstr("version 7"));
  EXPECT_THAT(error_of([&] { look({trace_, trace_}); }), HasSubstr("second trace"));
  EXPECT_THAT(error_of([&] { look({folder_ / "none"}); }), HasSubstr("none"));
  const Tensor x = Tensor::zeros(DType::f32, {1});
  write_safetensors(folder_ / "y", {{"x", x}});
  EXPECT_THAT(error_of([&] { look({folder_ / "y"}); }),
              HasSubstr("neither a trace, a mask log, a profile nor a recording"));
  TraceFile other = load_trace(trace_);
  other.header.target.fingerprint = "def";
  save_trace(trace_, other.header, Trace());
  EXPECT_THAT(error_of([&] { look({trace_, masks_}); }), HasSubstr("made for weights abc"));
}

// Model and sizes agree: the calls tell.
TEST_F(InspectTest, ATraceAndMasksOfTwoRunsAreRefused) {
  const TraceFile file = load_trace(trace_);
  const auto error = [&](auto change) {
    std::vector<TraceEntry> calls = file.calls;
    change(calls);
    Trace trace;
    for (TraceEntry& call : calls) trace.add(std::move(call));
    save_trace(trace_, file.header, trace);
    return error_of([&] { look({trace_, masks_}); });
  };
  using Calls = std::vector<TraceEntry>;
  EXPECT_EQ(error([](Calls&) {}), "");
  EXPECT_EQ(error([](Calls& calls) { calls[0].method = "replay", calls[0].reason = "method"; }), "")
      << "a skip rule left a mask of a dense call";
  EXPECT_EQ(error([](Calls& calls) {
              for (TraceEntry& call : calls) call.method = "replay";
            }),
            "");
  EXPECT_EQ(
      error([](Calls& calls) { calls[3].method = "sparge"; }),
      "inspect: step 1 layer 1 cond ran sparge by the trace and xattention by the masks; they "
      "are of two runs");
  EXPECT_EQ(error([](Calls& calls) { calls[0].reason = "dense-layers"; }),
            "inspect: step 0 layer 0 cond ran dense (dense-layers) by the trace and dense "
            "(dense-steps) by the masks; they are of two runs");
  EXPECT_EQ(
      error([](Calls& calls) { calls[4].mask_hash ^= 1; }),
      "inspect: step 2 layer 0 cond has another mask in the trace than in the masks; they are "
      "of two runs");
  EXPECT_EQ(
      error([](Calls& calls) {
        calls[2].mask_hash ^= 1;
        calls[4].mask_hash ^= 1;
      }),
      "inspect: step 1 layer 0 cond has another mask in the trace than in the masks; they are "
      "of two runs");
  EXPECT_THAT(error([](Calls& calls) { calls.pop_back(); }),
              HasSubstr("the trace has no call at step 2 layer 1"));
  EXPECT_EQ(error([](Calls& calls) {
              calls.push_back(calls.back());
              calls.back().site.branch = Branch::uncond;
            }),
            "inspect: the trace has 7 calls, the masks have 6; they are of two runs");
  // What a skip rule dropped is out of the log's mask, not of the trace's.
  EXPECT_EQ(error([](Calls& calls) {
              for (TraceEntry* call : {&calls[2], &calls[4]}) {
                call->mask_hash ^= 1;
                call->pv_density *= 0.9;
              }
            }),
            "");
}

TEST_F(InspectTest, TextHoldsEverySection) {
  const Json report = look({trace_, masks_});
  const std::string text = report_text(report, ReportFigures::draw);
  for (const Json& s : report["sections"])
    EXPECT_THAT(text, HasSubstr(s["title"].get<std::string>()));
  EXPECT_THAT(text, HasSubstr("dense-steps"));
  EXPECT_THAT(text, HasSubstr("= selection  # attention"));
  for (size_t at = 0, end = 0; at < text.size(); at = end + 1) {
    end = text.find('\n', at);
    EXPECT_TRUE(end == at || text[end - 1] != ' ') << text.substr(at, end - at);
  }
}

TEST(ReportText, StrangersWriteNoLinesAndNoControlCharacters) {
  const std::string evil = "x\x1b[2J\nsummary", shown = "x\\x1b[2J\\nsummary";
  const Json columns = Json::array({{{"key", "a"}, {"name", evil}}});
  const Json rows = Json::array({{{"a", evil}}});
  const auto section = [&](const char* kind, Json fields) {
    fields.update({{"kind", kind}, {"title", evil}, {"note", evil}});
    return fields;
  };
  const Json report = {
      {"title", evil},
      {"summary", evil},
      {"settings", {{evil, evil}}},
      {"sections",
       Json::array(
           {section("table", {{"columns", columns}, {"rows", rows}}),
            section("text", {{"paragraphs", Json::array({evil})}}),
            section("heatmap", {{"columns", {{"name", evil}, {"labels", Json::array({evil})}}},
                                {"rows", {{"name", evil}, {"labels", Json::array({evil})}}},
                                {"values", Json::array({Json::array({evil})})}}),
            section("bars", {{"categories", Json::array({evil})},
                             {"unit", evil},
                             {"series", Json::array({{{"name", evil},
                                                      {"values", Json::array({1.0})}}})}})})}};
  const std::string text = report_text(report, ReportFigures::draw);
  EXPECT_EQ(text.find('\x1b'), text.npos);
  EXPECT_EQ(text.find("\nsummary"), text.npos) << text;
  EXPECT_EQ(text.substr(0, shown.size() + 1), shown + "\n");
  EXPECT_TRUE(text.ends_with("\n" + shown + "\n")) << text;
}

TEST(Manifest, OverallHashTellsMasksAndPlaces) {
  TraceEntry a, b;
  a.mask_hash = 1;
  b.mask_hash = 2;
  b.site.branch = Branch::uncond;
  const std::vector<TraceEntry> calls{a, b};
  const auto hash = [&](std::vector<TraceEntry> list, std::optional<Branch> branch) {
    return overall_mask_hash(list, branch);
  };
  EXPECT_EQ(hash(calls, Branch::cond), hash({a}, {}));
  EXPECT_EQ(hash(calls, Branch::uncond), hash({b}, {}));
  EXPECT_NE(hash(calls, {}), hash({a}, {}));
  TraceEntry moved = a;
  moved.site.layer = 1;
  EXPECT_NE(hash({moved}, {}), hash({a}, {}));
}

}  // namespace
}  // namespace lacuna::test
