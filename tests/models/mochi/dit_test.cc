// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/mochi/dit.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <atomic>

#include "lacuna/core/metrics.h"
#include "lacuna/core/threads.h"
#include "lacuna/models/mochi/rope.h"
#include "tests/models/mochi/support.h"

namespace lacuna {
namespace {

using testing::equal_bytes;
using testing::error_of;
using testing::expect_golden;
using testing::Fixture;
using testing::Golden;
using testing::hash_values;
using ::testing::HasSubstr;
using testing::mochi_goldens;

constexpr int64_t kVideo = 72, kTextLen = 16;

Policy policy_of(const char* spec) {
  Policy policy;
  Rule rule;
  rule.plan = parse_plan(spec);
  policy.add(rule);
  return policy;
}

class MochiDitOn : public ::testing::TestWithParam<const char*> {
 protected:
  std::unique_ptr<Backend> backend_ = make_backend(GetParam());
};

INSTANTIATE_TEST_SUITE_P(Backends, MochiDitOn, ::testing::Values("ref", "cpu"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(MochiDitOn, GoldensInF32) {
  const std::vector<Golden> goldens = mochi_goldens();
  EXPECT_EQ(goldens.size(), 6u);
  for (const Golden& golden : goldens)
    expect_golden(run_hash_case(*backend_, DType::f32, golden.hash_case), golden);
}

TEST_P(MochiDitOn, Bf16StaysNearFloat) {
  for (const Golden& golden : mochi_goldens()) {
    // Both weights in bf16, and f32 weights converted on the fly. Against the same weights:
    // positions reach 100, so frequencies that were rounded when they were stored are another
    // network.
    for (const DType storage : {DType::bf16, DType::f32}) {
      MochiHashCase variant = golden.hash_case;
      variant.storage = storage;
      const ErrorStats error = compare(run_hash_case(*backend_, DType::bf16, variant),
                                       run_hash_case(*backend_, DType::f32, variant));
      EXPECT_LE(error.rel_l2, 1.5e-2) << variant.tag;
      EXPECT_GE(error.cos_sim, 0.9998) << variant.tag;
      EXPECT_GT(error.rel_l2, 1e-4) << "not bf16 at all?";
    }
  }
}

TEST_P(MochiDitOn, FullMaskEqualsDense) {
  Fixture dense(*backend_);
  const Tensor expected = dense.run();
  Fixture masked(*backend_, policy_of("window:tile_frames=2,tile_height=2,tile_width=2,"
                                      "window_frames=9,window_height=9,window_width=9"));
  EXPECT_LT(compare(masked.run(), expected).rel_l2, 1e-5);
  EXPECT_EQ(masked.engine.trace().qk_density(), 1.0);
  EXPECT_EQ(masked.engine.trace().entries().size(), 3u);  // one per layer
  EXPECT_EQ(masked.engine.trace().entries()[2].site.layer, 2);
  EXPECT_EQ(masked.engine.trace().entries()[2].site.num_layers, 3);
}

// Every query keeps every text token, and text queries keep everything.
void expect_text_kept(const Selection& selection, int64_t num_heads) {
  const BlockLayout &q = selection.q_layout, &k = selection.k_layout;
  for (int64_t head = 0; head < num_heads; ++head) {
    for (int32_t row = 0; row < q.num_blocks; ++row) {
      for (int32_t column = 0; column < k.num_blocks; ++column) {
        if (q.end(head, row) > kVideo || k.end(head, column) > kVideo) {
          EXPECT_TRUE(selection.mask.get(head, row, column)) << head << " " << row << " " << column;
        }
      }
    }
  }
}

TEST_P(MochiDitOn, SparseMethodsRunAndKeepTheText) {
  const Tensor expected = Fixture(*backend_).run();
  for (const char* spec :
       {"window:tile_frames=1,tile_height=2,tile_width=2,window_frames=1,window_height=1,"
        "window_width=1",
        "xattention:top_p=0.5,block=8,stride=4", "sparge:top_k=0.5,block_q=8,block_k=8"}) {
    SCOPED_TRACE(spec);
    Fixture sparse(*backend_, policy_of(spec));
    int seen = 0;
    sparse.engine.watch_selections(
        [&](const Site&, const VideoGrid& grid, int64_t text_tokens, const SiteSelection& chosen) {
          EXPECT_EQ(grid.tokens(), kVideo);
          EXPECT_EQ(text_tokens, 11);
          EXPECT_FALSE(chosen.selection.mask.empty());
          expect_text_kept(chosen.selection, 2);
          ++seen;
        });
    const ErrorStats error = compare(sparse.run(), expected);
    EXPECT_EQ(seen, 3);
    EXPECT_LT(sparse.engine.trace().qk_density(), 0.95);
    EXPECT_GT(error.rel_l2, 1e-3);  // the policy really reaches the attention of this model
    EXPECT_LT(error.rel_l2, 0.9);
  }
}

TEST_P(MochiDitOn, PartsOfAForwardGiveItsBytes) {
  Fixture model(*backend_);
  const Tensor whole = model.run();
  const Tensor stream(DType::f32, {kVideo + kTextLen, 32});
  const auto part = [&](int64_t begin, int64_t end, const Tensor& residual) {
    const LayerPart layers{begin, end, residual};
    return model.run(&layers);
  };
  EXPECT_EQ(part(0, 1, stream).as<float>()[0], 0.0f);
  part(1, 1, stream);  // nothing
  const Tensor held = copy_of(stream);
  // Twice from the same stream: a probe leaves the stream it was copied from alone.
  EXPECT_TRUE(equal_bytes(part(1, 3, held), whole));
  part(1, 2, stream);
  EXPECT_TRUE(equal_bytes(part(2, 3, stream), whole));
  EXPECT_EQ(model.engine.trace().entries().back().site.layer, 2);
  EXPECT_THAT(error_of([&] { part(2, 4, stream); }), HasSubstr("layers 2 to 4"));
  EXPECT_THAT(error_of([&] { part(0, 1, model.x); }), HasSubstr("expected [88, 32]"));
}

TEST_P(MochiDitOn, ThreadsDoNotChangeABit) {
  const int threads = num_threads();
  for (const DType compute : {DType::f32, DType::bf16}) {
    set_num_threads(1);
    const Tensor one = Fixture(*backend_, {}, compute).run();
    set_num_threads(2);
    const Tensor two = Fixture(*backend_, {}, compute).run();
    EXPECT_TRUE(equal_bytes(one, two)) << dtype_name(compute);
  }
  set_num_threads(threads);
}

TEST_P(MochiDitOn, ScratchIsWhatTheFormulaSays) {
  Fixture model(*backend_);
  model.ctx.workspace.release();
  const Tensor first = model.run();
  // f32 weights in an f32 run need no conversion scratch, so this is all there is; the formula
  // knows of no grid, and counts as many positions as 72 tokens can have.
  const int64_t tables = 4 * 32 * (3 + 4 + 6), most = 4 * 32 * (kVideo + 2);
  const int64_t bytes = mochi_activation_bytes(golden_mochi_config(), kVideo, DType::f32);
  EXPECT_EQ(model.ctx.workspace.bytes(), bytes - most + tables);
  model.prompt = model.prepare(16);
  model.run();
  EXPECT_EQ(model.ctx.workspace.bytes(), bytes - most + tables) << "a longer prompt took more";
  model.prompt = model.prepare(11);
  EXPECT_TRUE(equal_bytes(model.run(), first));
}

TEST(MochiDit, CancelsBetweenLayers) {
  const auto backend = make_backend("cpu");
  Fixture model(*backend);
  std::atomic<bool> stop = false;
  model.ctx.cancel = &stop;
  model.engine.watch_inputs([&](const Site& site, auto&&...) { stop = site.layer == 1; });
  EXPECT_THROW(model.run(), Cancelled);
  EXPECT_EQ(model.engine.trace().entries().size(), 2u);
}

// Names without values: what a model that lacks some of them says.
class Lacking : public testing::Recorder {
 public:
  bool has(std::string_view name) const override {
    return name != "pos_frequencies" && !name.ends_with(".norm_added_k.weight");
  }
};

TEST(MochiDit, ListsEveryMissingTensor) {
  Lacking source;
  WeightReader reader(source);
  const std::string message = error_of([&] { MochiDit(golden_mochi_config(), reader); });
  EXPECT_THAT(message, HasSubstr("4 tensors"));
  EXPECT_THAT(message, HasSubstr("pos_frequencies"));
  EXPECT_THAT(message, HasSubstr("transformer_blocks.2.attn1.norm_added_k.weight"));
}

TEST(MochiDit, WrongArgumentsAreNamed) {
  const auto backend = make_backend("ref");
  Fixture model(*backend), other(*backend);
  const Tensor out(DType::f32, {12, 3, 8, 12});
  const auto forward = [&](const VideoTransformer::Input& input, const TensorView& velocity) {
    return error_of([&] { model.dit.forward(model.ctx, model.engine, input, nullptr, velocity); });
  };
  const VideoTransformer::Input good = model.input();
  const Tensor four = hash_values("x", {4, 3, 8, 12}), odd = hash_values("x", {12, 3, 7, 12});
  EXPECT_THAT(forward({good.site, four, good.times, 0, {}, good.prompt}, out),
              HasSubstr("latent [4, 3, 8, 12]"));
  EXPECT_THAT(forward({good.site, odd, good.times, 0, {}, good.prompt}, odd),
              HasSubstr("height 7"));
  EXPECT_THAT(forward(good, four), HasSubstr("velocity [4, 3, 8, 12]"));
  EXPECT_THAT(forward({good.site, good.x, good.times, 2, {}, good.prompt}, out),
              HasSubstr("timestep 2"));
  const auto no_times = model.dit.prepare_times(model.ctx, {}, 1.0);
  EXPECT_THAT(forward({good.site, good.x, *no_times, 0, {}, good.prompt}, out),
              HasSubstr("timestep 0"));
  EXPECT_THAT(forward({good.site, good.x, good.times, 0, 1, good.prompt}, out),
              HasSubstr("first frame"));
  EXPECT_THAT(forward({good.site, good.x, *other.times, 0, {}, good.prompt}, out),
              HasSubstr("timesteps of another network"));
  EXPECT_THAT(forward({good.site, good.x, good.times, 0, {}, *other.prompt}, out),
              HasSubstr("prompt of another network"));
  EXPECT_THAT(error_of([&] { model.prepare(17); }), HasSubstr("17 text tokens"));
  PromptEmbedding narrow;
  narrow.tokens = hash_values("ctx", {3, 31});
  EXPECT_THAT(error_of([&] { model.dit.prepare_prompt(model.ctx, narrow); }),
              HasSubstr("prompt [3, 31]"));
  const auto elsewhere = make_backend("ref");
  Engine engine(*elsewhere, {});
  EXPECT_THAT(error_of([&] { model.dit.forward(model.ctx, engine, good, nullptr, out); }),
              HasSubstr("different backends"));
}

// A grid of 1 x 4 tokens: cells of 96 a side, centres 96 apart around 0.
TEST(MochiRope, PositionsAreCentresOfCellsOfOneArea) {
  Workspace workspace;
  Tensor frequencies(DType::f32, {3, 1, 2});
  const float values[] = {0.5f, 0.25f, 1.0f, 2.0f, 0.01f, -0.02f};
  std::copy(std::begin(values), std::end(values), frequencies.as<float>());
  const RopeTables tables = mochi_rope(frequencies, {3, 1, 4}, workspace);
  EXPECT_TRUE(tables.summed);
  EXPECT_EQ(tables.pairs_frames, 2);
  EXPECT_FLOAT_EQ(tables.cos_frames[2 * 2 + 1], std::cos(0.5f));
  EXPECT_FLOAT_EQ(tables.cos_height[1], 1.0f);
  EXPECT_FLOAT_EQ(tables.sin_height[0], 0.0f);
  EXPECT_FLOAT_EQ(tables.sin_width[0 * 2 + 0], std::sin(-1.44f));
  EXPECT_FLOAT_EQ(tables.cos_width[1 * 2 + 1], std::cos(0.96f));
  EXPECT_FLOAT_EQ(tables.sin_width[3 * 2 + 0], std::sin(1.44f));
  EXPECT_EQ(workspace.bytes(), 2 * 8 * 2 * 4);
}

}  // namespace
}  // namespace lacuna
