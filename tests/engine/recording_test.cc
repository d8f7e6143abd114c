// SPDX-License-Identifier: Apache-2.0
#include "lacuna/engine/recording.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "lacuna/core/error.h"
#include "lacuna/engine/engine.h"
#include "tests/engine/fixtures.h"
#include "tests/support/random.h"
#include "tests/support/temp_folder.h"

namespace lacuna::test {
namespace {

namespace fs = std::filesystem;

TEST(RecordSites, ParsesAndMatches) {
  const RecordFilter filter = parse_record_sites("steps=2,10;layers=0-1;branches=both");
  EXPECT_EQ(filter.steps, (std::vector<int>{2, 10}));
  Site site{.step = 10, .num_steps = 20, .layer = 1, .num_layers = 4, .branch = Branch::uncond};
  EXPECT_TRUE(filter.matches(site));
  site.layer = 2;
  EXPECT_FALSE(filter.matches(site));
  EXPECT_TRUE(parse_record_sites("").matches({}));
  EXPECT_FALSE(parse_record_sites("").matches({.branch = Branch::uncond}));
  for (const char* bad : {"step=1", "steps=", "layers=x", "branches=uncond", "steps=1;;"})
    EXPECT_THROW(parse_record_sites(bad), Error) << bad;
}

TEST(RecordSites, OfAModelThatDoesNotHaveThemAreErrors) {
  const auto says = [](const char* sites) {
    return error_of([&] { check_record_sites(parse_record_sites(sites), 4, 30); });
  };
  EXPECT_EQ(says(""), "");
  EXPECT_EQ(says("steps=0,3;layers=29"), "");
  EXPECT_EQ(says("steps=4"), "record sites: step 4, expected less than 4");
  EXPECT_EQ(says("steps=0;layers=0,39"), "record sites: layer 39, expected less than 30");
}

TEST(RecordSites, ThatAResumedRunHasPassedAreErrors) {
  const auto says = [](const char* sites, int first_step) {
    return error_of([&] { check_record_sites(parse_record_sites(sites), 4, 30, first_step); });
  };
  EXPECT_EQ(says("steps=2,1", 2), "");
  EXPECT_EQ(says("layers=0", 3), "");
  EXPECT_EQ(says("steps=2,1", 3),
            "record sites: the run goes on at step 3 of 4, behind the last that is chosen, 2; "
            "choose a step that is to come or start again without --resume");
  EXPECT_THAT(says("", 4), testing::HasSubstr("goes on at step 4 of 4"));  // only decodes
}

TEST(Recording, RoundTripsWhatTheEngineSaw) {
  const VideoGrid grid{2, 3, 4};
  const int64_t tokens = grid.tokens() + 2;
  const auto backend = make_backend("ref");
  Engine engine(*backend, Policy());
  Recorder recorder(*backend, parse_record_sites("steps=1"), 1 << 20);
  engine.watch_inputs([&](const auto&... inputs) { recorder.add(inputs...); });
  // Tokens first, heads inside, as a model has them.
  const Tensor q = random_tensor(DType::bf16, {tokens, 3, 8}, 1),
               k = random_tensor(DType::bf16, {tokens, 3, 8}, 2),
               v = random_tensor(DType::bf16, {tokens, 3, 8}, 3), out(DType::bf16, {3, tokens, 8});
  const auto heads_first = [&](const Tensor& x) {
    TensorView view = x;
    view.shape = {3, tokens, 8};
    view.stride = {8, 24, 1};
    return view;
  };
  for (int step : {0, 1})
    engine.attend({.step = step, .num_steps = 2, .sigma = 0.5f, .layer = 3, .num_layers = 4}, grid,
                  2, heads_first(q), heads_first(k), heads_first(v), out);
  ASSERT_EQ(recorder.size(), 1u);
  const test::TempFolder temp;
  const fs::path path = temp.path() / "recording.safetensors";
  recorder.save(path);

  const Recording recording(path);
  ASSERT_EQ(recording.calls().size(), 1u);
  const RecordedCall& call = recording.calls().front();
  EXPECT_EQ(call.site.step, 1);
  EXPECT_EQ(call.site.layer, 3);
  EXPECT_EQ(call.site.sigma, 0.5f);
  EXPECT_EQ(call.grid, grid);
  EXPECT_EQ(call.text_tokens, 2);
  const TensorView from = heads_first(v);
  for (int64_t h = 0; h < 3; ++h)
    for (int64_t i = 0; i < tokens; ++i)
      EXPECT_EQ(0, std::memcmp(call.v.as<BFloat16>() + (h * tokens + i) * 8,
                               from.as<BFloat16>() + h * 8 + i * 24, 16));
}

TEST(Recording, RefusesTooMuchAndNothing) {
  const auto backend = make_backend("ref");
  const Tensor x(DType::f32, {1, 8, 4});
  Recorder small(*backend, RecordFilter{}, 100);
  EXPECT_THROW(small.add({}, {2, 2, 2}, 0, x, x, x), Error);
  const test::TempFolder temp;
  EXPECT_THROW(Recorder(*backend, RecordFilter{}, 1 << 20).save(temp.path() / "nothing"), Error);
  EXPECT_TRUE(fs::is_empty(temp.path()));
}

TEST(Recording, RefusesHostileFiles) {
  const Tensor x = Tensor::zeros(DType::f32, {1, 8, 4});
  const test::TempFolder temp;
  const fs::path path = temp.path() / "hostile.safetensors";
  const std::string good =
      R"({"step":0,"num_steps":1,"sigma":1.0,"layer":0,"num_layers":1,"branch":"cond","expert":0,)"
      R"("grid":[2,2,2],"text_tokens":0})";
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    return "[" + text.replace(text.find(from), from.size(), to) + "]";
  };
  const auto write = [&](const std::string& sites) {
    write_safetensors(path, {{"call0000.q", x}, {"call0000.k", x}, {"call0000.v", x}},
                      {{"lacuna_recording", sites}});
  };
  write("[" + good + "]");
  EXPECT_EQ(Recording(path).calls().size(), 1u);
  for (const std::string& sites :
       {std::string("{}"), std::string("[]"), std::string("[1]"), std::string("nonsense"),
        with("\"grid\":[2,2,2]", "\"grid\":[2,2,3]"), with("[2,2,2]", "[2,2]"),
        with("[2,2,2]", "[65536,65536,65536]"), with("[2,2,2]", "[-2,-2,2]"),
        with("\"step\":0", "\"step\":1"), with("\"sigma\":1.0", "\"sigma\":-1"),
        with("\"cond\"", "\"both\""), with("\"expert\":0", "\"expert\":18446744073709551615"),
        "[" + good + "," + good + "]"}) {
    write(sites);
    EXPECT_THROW(Recording{path}, Error) << sites;
  }
}

// Files of other programs may begin their data at any byte; kernels read typed elements there.
TEST(Recording, RefusesTensorsAtOddAddresses) {
  const auto backend = make_backend("ref");
  Recorder recorder(*backend, RecordFilter{}, 1 << 20);
  const Tensor x = Tensor::zeros(DType::f32, {1, 8, 4});
  recorder.add({}, {2, 2, 2}, 0, x, x, x);
  const test::TempFolder temp;
  const fs::path path = temp.path() / "odd.safetensors";
  recorder.save(path);
  EXPECT_EQ(Recording(path).calls().size(), 1u);
  std::ifstream in(path, std::ios::binary);
  std::string bytes(std::istreambuf_iterator<char>(in), {});
  uint64_t header = 0;
  std::memcpy(&header, bytes.data(), sizeof(header));
  bytes.insert(8 + header, " ");
  ++header;
  std::memcpy(bytes.data(), &header, sizeof(header));
  std::ofstream(path, std::ios::binary) << bytes;
  EXPECT_EQ(SafetensorsFile(path).tensors().size(), 3u);
  EXPECT_THAT(error_of([&] { Recording{path}; }), testing::HasSubstr("multiples of 4 bytes"));
}

TEST(Engine, WritesTheLseInRasterOrder) {
  const VideoGrid grid{2, 4, 4};
  const auto backend = make_backend("ref");
  const Tensor q = random_tensor(DType::f32, {2, 32, 8}, 1),
               k = random_tensor(DType::f32, {2, 32, 8}, 2),
               v = random_tensor(DType::f32, {2, 32, 8}, 3), out(DType::f32, {2, 32, 8});
  std::vector<float> dense(64), tiled(64);
  Engine plain(*backend, Policy());
  plain.write_lse(dense);
  plain.attend({}, grid, 0, q, k, v, out);
  // All windows: the same attention, tokens in tile order.
  Policy policy;
  Rule rule;
  rule.plan = parse_plan(
      "window:tile_frames=1,tile_height=2,tile_width=2,window_frames=9,window_height=9,window_"
      "width=9");
  policy.add(rule);
  Engine moved(*backend, policy);
  moved.write_lse(tiled);
  moved.attend({}, grid, 0, q, k, v, out);
  for (size_t i = 0; i < 64; ++i) EXPECT_NEAR(dense[i], tiled[i], 1e-5) << i;
  std::vector<float> small(3);
  plain.write_lse(small);
  EXPECT_THROW(plain.attend({}, grid, 0, q, k, v, out), Error);
}

}  // namespace
}  // namespace lacuna::test
