// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/hunyuan/dit.h"

#include <gmock/gmock.h>

#include <atomic>
#include <cstring>

#include "lacuna/core/metrics.h"
#include "lacuna/core/threads.h"
#include "tests/models/hunyuan/support.h"
#include "tests/models/recorder.h"
#include "tests/support/error_of.h"
#include "tests/support/guarded_backend.h"

namespace lacuna {
namespace {

using test::error_of;
using test::GuardedBackend;
using test::same_bytes;
using ::testing::HasSubstr;
using testing::Network;
using testing::unit;

class HunyuanOn : public ::testing::TestWithParam<const char*> {
 protected:
  std::unique_ptr<Backend> backend_ = make_backend(GetParam());
};

INSTANTIATE_TEST_SUITE_P(Backends, HunyuanOn, ::testing::Values("ref", "cpu"),
                         [](const auto& info) { return std::string(info.param); });

// The numbers of upstream are held in tests/models/pipeline/verify_test.cc.
TEST_P(HunyuanOn, Bf16StaysNearFloat) {
  const HunyuanHashCase exact_case = golden_hunyuan_case();
  HunyuanHashCase rounded = exact_case;
  rounded.storage = DType::bf16;
  const Tensor exact = run_hash_case(*backend_, DType::f32, exact_case);
  // Both weights in bf16, and f32 weights converted on the fly.
  for (const HunyuanHashCase& variant : {rounded, exact_case}) {
    const ErrorStats error = compare(run_hash_case(*backend_, DType::bf16, variant), exact);
    EXPECT_LE(error.rel_l2, 1.5e-2);
    EXPECT_GE(error.cos_sim, 0.9998);
    EXPECT_GT(error.rel_l2, 1e-4) << "not bf16 at all?";
  }
}

TEST_P(HunyuanOn, FullMaskEqualsDense) {
  const Tensor dense = Network(*backend_).run();
  Network full(*backend_, DType::f32,
               "window:tile_frames=2,tile_height=2,tile_width=2,window_frames=9,window_height=9,"
               "window_width=9");
  EXPECT_LT(compare(full.run(), dense).rel_l2, 1e-5);
  EXPECT_EQ(full.engine.trace().qk_density(), 1.0);
}

// Video rows may leave out video keys; text keys stay visible to all, and text rows see everything.
TEST_P(HunyuanOn, SparseMethodsKeepTheText) {
  const Tensor dense = Network(*backend_).run();
  for (const char* plan :
       {"window:tile_frames=1,tile_height=2,tile_width=2,window_frames=1,window_height=1,"
        "window_width=1",
        "xattention:block=16,stride=8,top_p=0.5"}) {
    Network sparse(*backend_, DType::f32, plan);
    int64_t looked = 0;
    sparse.engine.watch_selections(
        [&](const Site& site, const VideoGrid& grid, int64_t text_tokens, const SiteSelection&) {
          EXPECT_EQ(grid.tokens(), 72);
          EXPECT_EQ(text_tokens, 11);
          EXPECT_EQ(site.layer, looked++);
          EXPECT_EQ(site.num_layers, 4);
        });
    const Tensor y = sparse.run();
    EXPECT_EQ(looked, 4) << plan;
    EXPECT_LT(sparse.engine.trace().qk_density(), 0.95) << plan;
    EXPECT_GT(compare(y, dense).rel_l2, 1e-4) << plan;
    // A video token that sees hardly any other one still sees the words.
    sparse.engine.watch_selections(nullptr);
    sparse.prompt = sparse.prepare(12);
    EXPECT_GT(compare(sparse.run(), y).rel_l2, 1e-4) << plan;
  }
}

TEST_P(HunyuanOn, PartsOfAForwardGiveItsBytes) {
  Network model(*backend_);
  const Tensor whole = model.run();
  const Tensor out = Tensor::zeros(DType::f32, {4, 3, 8, 12});
  const int64_t rows = 72 + model.config.text_len;
  const Tensor stream(DType::f32, {rows, 32}), held(DType::f32, {rows, 32});
  const auto run = [&](int64_t begin, int64_t end, const Tensor& residual) {
    const LayerPart part{begin, end, residual};
    model.transformer->forward(model.ctx, model.engine, model.input(), &part, out);
  };
  run(0, 1, stream);
  EXPECT_EQ(stream.as<float>()[rows * 32 - 1], 0.0f);  // no word, no garbage
  run(1, 1, stream);                                   // nothing
  EXPECT_EQ(out.as<float>()[0], 0.0f);
  std::memcpy(held.as<float>(), stream.as<float>(), static_cast<size_t>(rows) * 32 * 4);
  // Twice from the same stream: a probe leaves the stream it was copied from alone.
  for (const Tensor* residual : {&held, &stream}) {
    std::memset(out.as<float>(), 0, static_cast<size_t>(out.numel()) * 4);
    run(1, 3, *residual);  // from a dual block into a single one
    run(3, 4, *residual);
    EXPECT_TRUE(same_bytes(out, whole));
  }
  EXPECT_EQ(model.engine.trace().entries().back().site.layer, 3);
  EXPECT_THAT(error_of([&] { run(2, 5, stream); }), HasSubstr("layers 2 to 5"));
  EXPECT_THAT(error_of([&] { run(0, 1, out); }), HasSubstr("expected [328, 32]"));
}

TEST_P(HunyuanOn, ThreadsGiveTheSameBytes) {
  const int before = num_threads();
  for (const DType compute : {DType::f32, DType::bf16}) {
    set_num_threads(1);
    const Tensor one = Network(*backend_, compute).run();
    set_num_threads(2);
    EXPECT_TRUE(same_bytes(Network(*backend_, compute).run(), one)) << dtype_name(compute);
  }
  set_num_threads(before);
}

TEST_P(HunyuanOn, ScratchIsWhatTheFormulaSays) {
  Network model(*backend_);
  model.ctx.workspace.release();
  const Tensor first = model.run();
  // f32 weights in an f32 run need no conversion scratch, so this is all there is.
  const int64_t expected = HunyuanArchitecture(model.config).activation_bytes(72, DType::f32);
  EXPECT_EQ(model.ctx.workspace.bytes(), expected);
  model.prompt = model.prepare(3);
  model.run();
  model.prompt = model.prepare(200);
  model.run();
  EXPECT_EQ(model.ctx.workspace.bytes(), expected);
  model.prompt = model.prepare(11);
  EXPECT_TRUE(same_bytes(model.run(), first));  // nothing of another prompt is left
}

TEST_P(HunyuanOn, RowsBeyondOnePartAgreeWithRowsOfOne) {
  // 2880 video tokens and a prompt: two parts. A wider text_len moves their border.
  HunyuanHashCase large = golden_hunyuan_case();
  large.config.num_layers = large.config.num_single_layers = 1;
  large.frames = 2;
  large.height = 72;
  large.width = 80;
  large.valid_rows = {16};
  const Tensor whole = run_hash_case(*backend_, DType::f32, large);
  large.config.text_len = 1200;
  EXPECT_LT(compare(run_hash_case(*backend_, DType::f32, large), whole).rel_l2, 2e-6);
}

TEST_P(HunyuanOn, GuidanceIsAnInputOnlyOfNetworksThatTakeIt) {
  HunyuanHashCase weak = golden_hunyuan_case(), strong = weak;
  weak.valid_rows = strong.valid_rows = {4};
  weak.guidance = 1.0;
  const auto differ = [&] {
    return compare(run_hash_case(*backend_, DType::f32, weak),
                   run_hash_case(*backend_, DType::f32, strong))
        .rel_l2;
  };
  EXPECT_GT(differ(), 1e-3);
  weak.config.guidance_embeds = strong.config.guidance_embeds = false;
  EXPECT_EQ(differ(), 0.0);
}

struct Precision {
  const char* backend;
  DType storage, compute;
};

class GuardedHunyuan : public ::testing::TestWithParam<Precision> {};

TEST_P(GuardedHunyuan, ForwardGivesTheSameBytes) {
  const Precision& p = GetParam();
  const auto run = [&](Backend& backend, const char* plan) {
    return Network(backend, p.compute, plan, golden_hunyuan_config(), p.storage).run();
  };
  const auto plain = make_backend(p.backend);
  GuardedBackend guarded(make_backend(p.backend));
  for (const char* plan : {"dense", "svg2:q_clusters=6,k_clusters=9"})
    EXPECT_TRUE(same_bytes(run(guarded, plan), run(*plain, plan))) << plan;
  EXPECT_EQ(guarded.allocations(), 0u);
  EXPECT_EQ(guarded.promises(), 0u);
  EXPECT_FALSE(guarded.broken_promise);
}

// Layer by layer, with the stream between them in backend memory.
TEST_P(GuardedHunyuan, PartsMeetInBackendMemory) {
  const Precision& p = GetParam();
  const auto run = [&](Backend& backend) {
    Network model(backend, p.compute, nullptr, golden_hunyuan_config(), p.storage);
    Tensor out(DType::f32, {4, 3, 8, 12});
    const Tensor stream(DType::f32, {72 + model.config.text_len, 32}, backend);
    for (int64_t layer = 0; layer < 4; ++layer) {
      const LayerPart part{layer, layer + 1, stream};
      model.transformer->forward(model.ctx, model.engine, model.input(), &part, out);
    }
    return out;
  };
  GuardedBackend guarded(make_backend(p.backend));
  EXPECT_TRUE(same_bytes(run(guarded), run(*make_backend(p.backend))));
}

INSTANTIATE_TEST_SUITE_P(On, GuardedHunyuan,
                         ::testing::Values(Precision{"ref", DType::f32, DType::f32},
                                           Precision{"cpu", DType::bf16, DType::f32},
                                           Precision{"cpu", DType::f32, DType::bf16},
                                           Precision{"cpu", DType::bf16, DType::bf16}),
                         [](const auto& info) {
                           return fmt::format("{}_{}_{}", info.param.backend,
                                              dtype_name(info.param.storage),
                                              dtype_name(info.param.compute));
                         });

// A source that lacks some tensors.
class Lacking : public testing::Recorder {
 public:
  bool has(std::string_view name) const override {
    return name != "transformer_blocks.1.attn.add_k_proj.bias" &&
           name != "single_transformer_blocks.0.proj_out.weight" &&
           name != "context_embedder.token_refiner.refiner_blocks.0.norm2.weight";
  }
};

TEST(Hunyuan, ListsEveryMissingTensor) {
  Lacking source;
  WeightReader reader(source);
  const std::string message =
      error_of([&] { HunyuanArchitecture(golden_hunyuan_config()).load(reader); });
  EXPECT_THAT(message, HasSubstr("3 tensors"));
  EXPECT_THAT(message, HasSubstr("transformer_blocks.1.attn.add_k_proj.bias"));
  EXPECT_THAT(message, HasSubstr("single_transformer_blocks.0.proj_out.weight"));
  EXPECT_THAT(message, HasSubstr("refiner_blocks.0.norm2.weight"));
}

TEST(Hunyuan, StopsBetweenLayers) {
  const auto backend = make_backend("ref");
  Network model(*backend);
  std::atomic<bool> stop = false;
  Context ctx(*backend, DType::f32, &stop);
  const Tensor out(DType::f32, {4, 3, 8, 12});
  model.engine.watch_inputs([&](const Site& site, const VideoGrid&, int64_t, const TensorView&,
                                const TensorView&, const TensorView&) { stop = site.layer == 1; });
  EXPECT_THROW(model.transformer->forward(ctx, model.engine, model.input(), nullptr, out),
               Cancelled);
  EXPECT_EQ(model.engine.trace().entries().size(), 2u);
}

TEST(Hunyuan, WrongArgumentsAreNamed) {
  const auto backend = make_backend("ref");
  Network model(*backend), other(*backend);
  const Tensor out(DType::f32, {4, 3, 8, 12});
  const auto forward = [&](auto change, const TensorView& result) {
    VideoTransformer::Input input = model.input();
    change(input);
    return error_of(
        [&] { model.transformer->forward(model.ctx, model.engine, input, nullptr, result); });
  };
  using Input = VideoTransformer::Input;
  const auto same = [](Input&) {};
  EXPECT_EQ(forward(same, out), "");
  EXPECT_THAT(forward([&](Input& i) { i.time = 1; }, out), HasSubstr("timestep 1"));
  EXPECT_THAT(forward([&](Input& i) { i.first_frame_time = 0; }, out), HasSubstr("picture"));
  EXPECT_THAT(forward([&](Input& i) { i.x = other.x.view().slice(0, 3); }, out),
              HasSubstr("latent [3, 3, 8, 12]"));
  EXPECT_THAT(forward(same, model.x.view().slice(0, 3)), HasSubstr("velocity [3, 3, 8, 12]"));
  const auto with = [&](const VideoTransformer::Times& times,
                        const VideoTransformer::Prompt& prompt) {
    const Input input{.site = Site{}, .x = model.x, .times = times, .time = 0, .prompt = prompt};
    return error_of(
        [&] { model.transformer->forward(model.ctx, model.engine, input, nullptr, out); });
  };
  EXPECT_THAT(with(*other.times, *model.prompt), HasSubstr("times of another network"));
  EXPECT_THAT(with(*model.times, *other.prompt), HasSubstr("prompt of another network"));
  const auto prepare = [&](PromptEmbedding text) {
    return error_of([&] { model.transformer->prepare_prompt(model.ctx, text); });
  };
  EXPECT_THAT(prepare({unit("a", {257, 32}), unit("b", {24})}), HasSubstr("text [257, 32]"));
  EXPECT_THAT(prepare({unit("a", {0, 32}), unit("b", {24})}), HasSubstr("text [0, 32]"));
  EXPECT_THAT(prepare({unit("a", {4, 31}), unit("b", {24})}), HasSubstr("text [4, 31]"));
  EXPECT_THAT(prepare({unit("a", {4, 32}), unit("b", {25})}), HasSubstr("pooled text [25]"));
  EXPECT_THAT(prepare({unit("a", {4, 32}), Tensor()}), HasSubstr("pooled text"));
  const double t[] = {500.0, NAN};
  EXPECT_THAT(error_of([&] { model.transformer->prepare_times(model.ctx, t, 6.0); }),
              HasSubstr("finite"));
  EXPECT_THAT(error_of([&] {
                model.transformer->prepare_times(model.ctx, {t, 1}, -1.0);
              }),
              HasSubstr("guidance -1"));
}

}  // namespace
}  // namespace lacuna
