// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/wan/dit.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "lacuna/core/metrics.h"
#include "lacuna/models/layers.h"
#include "lacuna/models/wan/hash_case.h"
#include "tests/models/wan/support.h"

namespace lacuna {
namespace {

using testing::error_of;
using testing::expect_golden;
using testing::FakeFile;
using testing::Golden;
using ::testing::HasSubstr;
using testing::make_file;

// [tokens, channels] -> [channels, tokens], as upstream's patch convolution stores it.
Tensor transposed(const TensorView& rows) {
  Tensor result(DType::f32, {rows.shape[1], rows.shape[0]});
  for (int64_t n = 0; n < rows.shape[0]; ++n) {
    for (int64_t c = 0; c < rows.shape[1]; ++c) {
      result.as<float>()[c * rows.shape[0] + n] = rows.as<float>()[n * rows.shape[1] + c];
    }
  }
  return result;
}

class WanDitOn : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const auto names = backend_names();
    if (std::find(names.begin(), names.end(), GetParam()) == names.end()) {
      GTEST_SKIP() << "backend " << GetParam() << " is not in this build";
    }
    backend_ = make_backend(GetParam());
  }
  std::unique_ptr<Backend> backend_;
};

INSTANTIATE_TEST_SUITE_P(Backends, WanDitOn, ::testing::Values("ref", "cpu"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(WanDitOn, GoldenOneTimestep) {
  const Tensor y = run_hash_case(*backend_, DType::f32, golden_wan_cases()[0]);
  expect_golden(y, {"wan-t837",
                    1.27267086,
                    -13.0330556,
                    {{0, 0.8862259},
                     {1, -1.202638},
                     {2, -0.5077939},
                     {3, -0.8138819},
                     {1536, -0.6086749},
                     {2304, -0.6330374},
                     {3072, 0.9932658},
                     {4607, -1.593439}}});
}

TEST_P(WanDitOn, GoldenTimestepPerToken) {
  const Tensor y = run_hash_case(*backend_, DType::f32, golden_wan_cases()[1]);
  expect_golden(
      y, {"wan-ti2v",
          1.22624695,
          -6.10127995,
          {{0, 1.198002}, {1, -0.7803541}, {2, -0.7812452}, {3, 0.0007306971}, {4607, -1.853702}}});
}

TEST_P(WanDitOn, GoldenTaps) {
  const auto golden = [](const char* name, double rms, double probe, double first, double second) {
    return Golden{std::string("tap:") + name, rms, probe, {{0, first}, {1, second}}};
  };
  const std::vector<Golden> goldens = {
      golden("patch_embedding", 1.00776205, -66.4055582, -0.7044884, -0.3693532),
      golden("condition_embedder.time_embedder", 0.364470189, -0.140198562, 0.3327079, 0.426991),
      golden("condition_embedder.time_proj", 0.216475474, -3.50874147, -0.4014433, -0.10319),
      golden("condition_embedder.text_embedder", 0.618989428, 2.26680953, 0.2552432, 0.5813276),
      golden("blocks.0.attn1.norm_q", 1.00855706, -19.5225802, -0.3180141, -0.304427),
      golden("blocks.0.attn1", 0.461174906, -21.3393804, -0.01256572, -0.3612461),
      golden("blocks.0.norm2", 1.00377322, -14.3086363, -0.5733368, 1.169197),
      golden("blocks.0.attn2", 0.330675385, -20.3871543, -0.09501421, -0.3410998),
      golden("blocks.0.ffn", 0.714538351, -33.5361422, -0.004185513, 1.149532),
      golden("blocks.0", 1.10959933, -17.5645145, -0.7937444, 0.2348604),
      golden("blocks.1", 1.21660568, 125.602610, -1.225823, 0.2302468),
      golden("blocks.2", 1.30178888, -5.59839810, -1.12289, 0.1413684),
      golden("proj_out", 1.27267086, 77.3243061, 0.8862259, 0.09129161)};
  std::set<std::string> seen;
  const WanTap tap = [&](std::string_view name, const TensorView& value) {
    for (const Golden& expected : goldens) {
      if (expected.tag != "tap:" + std::string(name)) continue;
      EXPECT_TRUE(seen.insert(expected.tag).second) << name << " came twice";
      expect_golden(name == "patch_embedding" ? transposed(value).view() : value, expected);
    }
  };
  const Tensor tapped = run_hash_case(*backend_, DType::f32, golden_wan_cases()[0], &tap);
  EXPECT_EQ(seen.size(), goldens.size());
  const Tensor plain = run_hash_case(*backend_, DType::f32, golden_wan_cases()[0]);
  EXPECT_EQ(std::memcmp(tapped.view().data, plain.view().data,
                        static_cast<size_t>(plain.numel()) * sizeof(float)),
            0);
}

TEST_P(WanDitOn, Bf16StaysNearFloat) {
  for (const WanHashCase& hash_case : golden_wan_cases()) {
    const Tensor exact = run_hash_case(*backend_, DType::f32, hash_case);
    WanHashCase rounded = hash_case;
    rounded.storage = DType::bf16;
    // Both weights in bf16, and f32 weights converted on the fly.
    for (const WanHashCase& variant : {rounded, hash_case}) {
      const ErrorStats error = compare(run_hash_case(*backend_, DType::bf16, variant), exact);
      EXPECT_LE(error.rel_l2, 1.5e-2) << hash_case.tag;
      EXPECT_GE(error.cos_sim, 0.9998) << hash_case.tag;
      EXPECT_GT(error.rel_l2, 1e-4) << "not bf16 at all?";
    }
  }
}

// What a test needs to run the golden network its own way.
struct Fixture {
  explicit Fixture(Backend& backend, WanConfig model = golden_wan_config(), Policy policy = {})
      : config(model),
        reader(*source),
        dit(model, reader),
        ctx{backend, DType::f32, {}},
        engine(backend, std::move(policy)) {
    const double t = 700.0;
    time = std::move(dit.embed_times(ctx, {&t, 1})[0]);
  }
  Tensor run(const Tensor& x, const PreparedText& text) {
    const auto& shape = x.view().shape;
    Tensor out(DType::f32, {config.out_channels, shape[1], shape[2], shape[3]});
    dit.forward(ctx, engine, Site{}, x, time, text, out);
    return out;
  }
  WanConfig config;
  std::unique_ptr<WeightSource> source = hash_weights("w:", DType::f32);
  WeightReader reader;
  WanDit dit;
  Context ctx;
  Engine engine;
  TimeEmbedding time;
};

TEST_P(WanDitOn, PaddingCollapsesExactly) {
  Fixture model(*backend_);
  const Tensor x = hash_input("x:wan", {16, 3, 8, 12});
  for (const int64_t valid : {0, 1, 9, 510, 511, 512}) {
    const Tensor context = hash_input("ctx:pad", {std::max<int64_t>(valid, 1), 96});
    const Tensor full = Tensor::zeros(DType::f32, {512, 96});
    std::memcpy(full.view().data, context.view().data, static_cast<size_t>(valid * 96) * 4);
    const PreparedText collapsed =
        model.dit.prepare_text(model.ctx, context.view().slice(0, valid), 512);
    const PreparedText expanded = model.dit.prepare_text(model.ctx, full, 512);
    EXPECT_EQ(collapsed.keys, std::min<int64_t>(valid + 1, 512));
    EXPECT_EQ(collapsed.bias.empty(), valid == 512);
    EXPECT_EQ(expanded.keys, 512);
    const ErrorStats error = compare(model.run(x, collapsed), model.run(x, expanded));
    EXPECT_LT(error.rel_l2, 2e-6) << valid << " valid rows";
  }
}

TEST_P(WanDitOn, EqualTimestepsPerRangeAreTheScalarCase) {
  WanHashCase split = golden_wan_cases()[0];
  const Tensor whole = run_hash_case(*backend_, DType::f32, split);
  split.times = {{1, 837.0}, {40, 837.0}, {31, 837.0}};
  EXPECT_LT(compare(run_hash_case(*backend_, DType::f32, split), whole).rel_l2, 2e-6);
}

TEST_P(WanDitOn, FullMaskEqualsDense) {
  Fixture dense(*backend_);
  const Tensor x = hash_input("x:wan", {16, 3, 8, 12});
  const Tensor context = hash_input("ctx:wan", {20, 96});
  const Tensor expected = dense.run(x, dense.dit.prepare_text(dense.ctx, context, 20));
  for (const char* spec :
       {"window:tile_frames=2,tile_height=2,tile_width=2,window_frames=9,window_height=9,"
        "window_width=9",
        "window:tile_frames=1,tile_height=2,tile_width=2,window_frames=1,window_height=1,"
        "window_width=1"}) {
    Policy policy;
    Rule rule;
    rule.plan = parse_plan(spec);
    policy.add(rule);
    Fixture sparse(*backend_, golden_wan_config(), policy);
    const Tensor y = sparse.run(x, sparse.dit.prepare_text(sparse.ctx, context, 20));
    const double density = sparse.engine.trace().qk_density();
    const ErrorStats error = compare(y, expected);
    if (std::string_view(spec).find("window_frames=9") != std::string_view::npos) {
      EXPECT_EQ(density, 1.0);
      EXPECT_LT(error.rel_l2, 1e-5);
    } else {
      EXPECT_LT(density, 0.2);  // the policy really reaches the attention of this model
      EXPECT_GT(error.rel_l2, 1e-3);
    }
    EXPECT_EQ(sparse.engine.trace().entries().size(), 3u);  // one per layer
    EXPECT_EQ(sparse.engine.trace().entries()[2].site.layer, 2);
    EXPECT_EQ(sparse.engine.trace().entries()[2].site.num_layers, 3);
  }
}

TEST_P(WanDitOn, BothNamingSchemesGiveTheSameBytes) {
  const WanHashCase hash_case = golden_wan_cases()[0];
  const Tensor expected = run_hash_case(*backend_, DType::f32, hash_case);
  const Tensor x = hash_input("x:wan", {16, 3, 8, 12});
  const Tensor context = hash_input("ctx:wan", {20, 96});
  for (const WanNames& names : {WanNames{WanNaming::original, "model.diffusion_model."},
                                WanNames{WanNaming::diffusers, ""}}) {
    FakeFile file = make_file(golden_wan_config(), names);
    WeightReader reader(file, wan_rename(detect_wan_names(file)));
    const WanDit dit(golden_wan_config(), reader);
    Context ctx{*backend_, DType::f32};
    Engine engine(*backend_, {});
    const double t = 837.0;
    const Tensor out(DType::f32, {16, 3, 8, 12});
    dit.forward(ctx, engine, Site{}, x, dit.embed_times(ctx, {&t, 1})[0],
                dit.prepare_text(ctx, context, 20), out);
    EXPECT_EQ(std::memcmp(out.view().data, expected.view().data, 4608 * sizeof(float)), 0);
  }
}

TEST_P(WanDitOn, PartsOfAForwardGiveItsBytes) {
  Fixture model(*backend_);
  const Tensor x = hash_input("x:wan", {16, 3, 8, 12});
  const Tensor context = hash_input("ctx:wan", {20, 96});
  const PreparedText text = model.dit.prepare_text(model.ctx, context, 32);
  const Tensor whole = model.run(x, text);
  const Tensor out = Tensor::zeros(DType::f32, {16, 3, 8, 12});
  const Tensor stream(DType::f32, {72, 128}), held(DType::f32, {72, 128});
  const auto run = [&](int64_t begin, int64_t end, const Tensor& residual) {
    model.dit.forward_part(model.ctx, model.engine, Site{}, x, model.time, text,
                           {begin, end, residual}, out);
  };
  run(0, 1, stream);
  run(1, 1, stream);  // nothing
  EXPECT_EQ(out.as<float>()[0], 0.0f);
  std::memcpy(held.as<float>(), stream.as<float>(), 72 * 128 * sizeof(float));
  // Twice from the same stream: a probe leaves the stream it was copied from alone.
  for (const Tensor* residual : {&held, &stream}) {
    run(1, 3, *residual);
    EXPECT_EQ(std::memcmp(out.view().data, whole.view().data, 4608 * sizeof(float)), 0);
  }
  EXPECT_EQ(model.engine.trace().entries().back().site.layer, 2);
  EXPECT_EQ(model.engine.trace().entries().back().site.num_layers, 3);
  EXPECT_THAT(error_of([&] { run(2, 4, stream); }), HasSubstr("layers 2 to 4"));
  EXPECT_THAT(error_of([&] { run(0, 1, out); }), HasSubstr("expected [72, 128]"));
}

TEST_P(WanDitOn, PatchOverTwoFramesKeepsFramesApart) {
  WanConfig config = golden_wan_config();
  config.in_channels = config.out_channels = 8;
  config.patch_t = 2;
  config.patch_h = config.patch_w = 1;
  Fixture model(*backend_, config);
  const Tensor context = hash_input("ctx:wan", {20, 96});
  const PreparedText text = model.dit.prepare_text(model.ctx, context, 32);
  const Tensor x = hash_input("x:pico", {8, 4, 5, 6});
  const Tensor y = model.run(x, text);
  double squares = 0.0;
  for (int64_t i = 0; i < y.numel(); ++i) {
    ASSERT_TRUE(std::isfinite(y.as<float>()[i]));
    squares += static_cast<double>(y.as<float>()[i]) * y.as<float>()[i];
  }
  EXPECT_NEAR(std::sqrt(squares / static_cast<double>(y.numel())), 1.2, 0.3);
  EXPECT_THAT(error_of([&] {
                model.run(hash_input("x:odd", {8, 3, 5, 6}), text);
              }),
              HasSubstr("frames 3"));
}

TEST_P(WanDitOn, ScratchIsWhatTheFormulaSays) {
  Fixture model(*backend_);
  const Tensor context = hash_input("ctx:wan", {20, 96});
  const PreparedText text = model.dit.prepare_text(model.ctx, context, 32);
  model.ctx.workspace.release();
  const Tensor x = hash_input("x:wan", {16, 3, 8, 12});
  const Tensor first = model.run(x, text);
  // f32 weights in an f32 run need no conversion scratch, so this is all there is.
  EXPECT_EQ(model.ctx.workspace.bytes(), activation_bytes(model.config, 72, DType::f32));
  const Tensor second = model.run(x, text);
  EXPECT_EQ(model.ctx.workspace.bytes(), activation_bytes(model.config, 72, DType::f32));
  EXPECT_EQ(std::memcmp(first.view().data, second.view().data, 4608 * sizeof(float)), 0);
}

TEST_P(WanDitOn, RowsBeyondOneChunkAgreeWithTheirTimestepRanges) {
  // 2592 tokens: two chunks of the feed-forward. Cutting the tokens into ranges at another place
  // moves every chunk border, which must not matter.
  WanHashCase large = golden_wan_cases()[0];
  large.config.num_layers = 1;
  large.frames = 3;
  large.height = 48;
  large.width = 72;
  large.times = {{2592, 300.0}};
  ASSERT_LT(rows_at_once(2592), 2592);
  const Tensor whole = run_hash_case(*backend_, DType::f32, large);
  large.times = {{1000, 300.0}, {1592, 300.0}};
  EXPECT_LT(compare(run_hash_case(*backend_, DType::f32, large), whole).rel_l2, 2e-6);
}

TEST(WanDit, ListsEveryMissingTensor) {
  FakeFile file = make_file(golden_wan_config(), {WanNaming::original, "model."});
  const auto rename = wan_rename(detect_wan_names(file));
  file.shapes.erase("model.blocks.1.norm3.bias");
  file.shapes.erase("model.blocks.2.self_attn.o.weight");
  file.shapes.erase("model.time_projection.1.weight");
  WeightReader reader(file, rename);
  const std::string message = error_of([&] { WanDit(golden_wan_config(), reader); });
  EXPECT_THAT(message, HasSubstr("3 tensors"));
  EXPECT_THAT(message, HasSubstr("model.blocks.1.norm3.bias"));
  EXPECT_THAT(message, HasSubstr("model.blocks.2.self_attn.o.weight"));
  EXPECT_THAT(message, HasSubstr("model.time_projection.1.weight"));
}

TEST(WanDit, WrongArgumentsAreNamed) {
  const auto backend = make_backend("ref");
  Fixture model(*backend);
  const Tensor context = hash_input("ctx:wan", {20, 96});
  const PreparedText text = model.dit.prepare_text(model.ctx, context, 20);
  const Tensor x = hash_input("x:wan", {16, 3, 8, 12});
  const Tensor out(DType::f32, {16, 3, 8, 12});
  const auto forward = [&](const TensorView& latent, std::vector<TokenTime> times,
                           const TensorView& result) {
    return error_of(
        [&] { model.dit.forward(model.ctx, model.engine, Site{}, latent, times, text, result); });
  };
  const TimeEmbedding* time = &model.time;
  EXPECT_THAT(forward(context, {{0, 72, time}}, out), HasSubstr("latent [20, 96]"));
  EXPECT_THAT(forward(x, {{0, 72, time}}, context), HasSubstr("output [20, 96]"));
  EXPECT_THAT(forward(x, {}, out), HasSubstr("0 timestep ranges"));
  EXPECT_THAT(forward(x, {{0, 24, time}}, out), HasSubstr("timesteps for 24 tokens"));
  EXPECT_THAT(forward(x, {{0, 24, time}, {20, 72, time}}, out), HasSubstr("range 20..72"));
  EXPECT_THAT(forward(x, {{0, 72, nullptr}}, out), HasSubstr("width 128"));
  EXPECT_THAT(error_of([&] { model.dit.prepare_text(model.ctx, context, 19); }),
              HasSubstr("20 text rows"));
  EXPECT_THAT(error_of([&] { model.dit.prepare_text(model.ctx, x, 20); }),
              HasSubstr("text context"));
  model.ctx.compute = DType::bf16;
  EXPECT_THAT(forward(x, {{0, 72, time}}, out), HasSubstr("text prepared in f32"));
  const auto other = make_backend("ref");
  Engine elsewhere(*other, {});
  EXPECT_THAT(
      error_of([&] { model.dit.forward(model.ctx, elsewhere, Site{}, x, model.time, text, out); }),
      HasSubstr("different backends"));
}

}  // namespace
}  // namespace lacuna
