// SPDX-License-Identifier: Apache-2.0
// Properties of the Wan VAE decoders that need no reference numbers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <string>

#include "lacuna/core/threads.h"
#include "lacuna/models/vae/wan_decoder.h"
#include "lacuna/models/vae/wan_encoder.h"
#include "tests/models/vae/support.h"

namespace lacuna {
namespace {

using testing::error_of;
using testing::hash_tensor;
using testing::worst_error;

struct Rig {
  VaeConfig config;
  std::unique_ptr<WeightSource> source = hash_weights("w:", DType::f32);
  std::unique_ptr<Backend> backend = testing::quick_backend();
  WanDecoder decoder;

  explicit Rig(std::string_view preset) : config(vae_preset(preset)), decoder(config, *source) {}

  Tensor decode(const TensorView& latents, const DecodeOptions& options,
                DType compute = DType::f32) {
    Context ctx{*backend, compute};
    return decode_video(decoder, ctx, latents, options);
  }
  Tensor latents(int64_t t, int64_t h, int64_t w) const {
    return hash_tensor("z:decode_test", {config.z_dim, t, h, w});
  }
};

// Thousands of tiny operations: one thread is faster than waking two, above all on a busy machine.
class VaeDecode : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override { set_num_threads(1); }
  void TearDown() override { set_num_threads(threads_); }

 private:
  int threads_ = num_threads();
};

TEST_P(VaeDecode, StreamingEqualsWholeClip) {
  Rig rig(GetParam());
  const Tensor z = rig.latents(4, 3, 5);
  DecodeOptions options;
  const Tensor streamed = rig.decode(z, options);
  for (const int64_t frames : {2, 3, 4}) {
    options.frames_per_pass = frames;
    EXPECT_LE(worst_error(rig.decode(z, options), streamed), 1e-5) << frames << " frames per pass";
  }
}

// A causal decoder: later latents cannot change earlier frames.
TEST_P(VaeDecode, FirstFramesDoNotDependOnLaterLatents) {
  Rig rig(GetParam());
  const Tensor z = rig.latents(3, 3, 4);
  const int64_t c = rig.config.z_dim, cells = 12;
  Tensor cut(DType::f32, {c, 2, 3, 4});
  for (int64_t i = 0; i < c; ++i) {
    std::memcpy(cut.as<float>() + i * 2 * cells, z.as<float>() + i * 3 * cells,
                2 * cells * sizeof(float));
  }
  const Tensor all = rig.decode(z, {}), some = rig.decode(cut, {});
  const int64_t frame = all.view().shape[2] * all.view().shape[3];
  ASSERT_EQ(all.view().shape[1], 9);
  ASSERT_EQ(some.view().shape[1], 5);
  for (int64_t i = 0; i < 3; ++i) {
    EXPECT_EQ(std::memcmp(all.as<float>() + i * 9 * frame, some.as<float>() + i * 5 * frame,
                          static_cast<size_t>(5 * frame) * sizeof(float)),
              0);
  }
}

TEST_P(VaeDecode, SinkSeesFramesInOrderAsTheyAreDone) {
  Rig rig(GetParam());
  const Tensor z = rig.latents(3, 2, 3);
  Context ctx{*rig.backend, DType::f32};
  std::vector<int64_t> chunks, done;
  DecodeOptions options;
  options.progress = [&](int64_t i, int64_t n) {
    EXPECT_EQ(n, 3);
    EXPECT_EQ(chunks.size(), static_cast<size_t>(i));  // frames come before their progress
    done.push_back(i);
  };
  rig.decoder.decode(ctx, z, options, [&](const TensorView& frames) {
    EXPECT_EQ(frames.shape[3], 3);
    for (int64_t i = 0; i < frames.numel(); ++i) ASSERT_LE(std::abs(frames.as<float>()[i]), 1.0f);
    chunks.push_back(frames.shape[0]);
  });
  EXPECT_EQ(chunks, (std::vector<int64_t>{1, 4, 4}));
  EXPECT_EQ(done, (std::vector<int64_t>{1, 2, 3}));
}

TEST_P(VaeDecode, ProgressCanStopIt) {
  Rig rig(GetParam());
  DecodeOptions options;
  options.progress = [](int64_t done, int64_t) {
    if (done == 1) fail("stopped");
  };
  EXPECT_EQ(error_of([&] { rig.decode(rig.latents(2, 2, 2), options); }), "stopped");
}

TEST_P(VaeDecode, StatisticsAreAppliedPerChannel) {
  Rig rig(GetParam());
  const Tensor z = rig.latents(1, 2, 3);
  Tensor scaled(DType::f32, {rig.config.z_dim, 1, 2, 3});
  for (int64_t i = 0; i < z.numel(); ++i) {
    const auto c = static_cast<size_t>(i / 6);
    scaled.as<float>()[i] =
        z.as<float>()[i] * rig.config.latents_std[c] + rig.config.latents_mean[c];
  }
  DecodeOptions raw;
  raw.denormalize = false;
  EXPECT_LE(worst_error(rig.decode(z, {}), rig.decode(scaled, raw)), 1e-6);
}

TEST_P(VaeDecode, ExactTilingEqualsUntiled) {
  Rig rig(GetParam());
  const Tensor z = rig.latents(2, 8, 9);
  const Tensor whole = rig.decode(z, {});
  const int64_t factor = rig.config.spatial_factor();
  for (const int64_t cells : {2, 4, 5}) {
    DecodeOptions options;
    options.tiling = {TileMode::exact, cells * factor, cells * factor, 0, 0};
    EXPECT_LE(worst_error(rig.decode(z, options), whole), 1e-5) << "tiles of " << cells;
  }
}

TEST_P(VaeDecode, BlendTilingIsApproximateOnly) {
  Rig rig(GetParam());
  const Tensor z = rig.latents(2, 6, 7);
  const int64_t factor = rig.config.spatial_factor();
  DecodeOptions options;
  options.tiling = {TileMode::blend, 4 * factor, 4 * factor, 2 * factor, 2 * factor};
  int64_t last = 0, total = 0;
  options.progress = [&](int64_t done, int64_t all) { last = done, total = all; };
  const Tensor blended = rig.decode(z, options);
  EXPECT_EQ(total, 2 * 3 * 4);  // latent frames x tile rows x tile columns
  EXPECT_EQ(last, total);
  const ErrorStats stats = compare(blended, rig.decode(z, {}));
  EXPECT_GT(stats.rel_l2, 1e-3);
  EXPECT_LT(stats.rel_l2, 1.0);
}

// A frame that fits one tile is decoded as without tiling, bit for bit.
TEST_P(VaeDecode, TilingLeavesSmallFramesAlone) {
  Rig rig(GetParam());
  const Tensor z = rig.latents(2, 4, 4);
  const Tensor whole = rig.decode(z, {});
  for (const TileMode mode : {TileMode::blend, TileMode::exact}) {
    DecodeOptions options;
    options.tiling.mode = mode;
    EXPECT_EQ(worst_error(rig.decode(z, options), whole), 0.0);
  }
}

TEST_P(VaeDecode, MemoryEstimateCoversWhatIsHeld) {
  Rig rig(GetParam());
  const int64_t factor = rig.config.spatial_factor();
  for (const TileMode mode : {TileMode::off, TileMode::exact, TileMode::blend}) {
    for (const int64_t frames : {1, 2, 3}) {
      for (const DType compute : {DType::f32, DType::bf16}) {
        const Tensor z = rig.latents(frames, 7, 8);
        DecodeStats stats;
        DecodeOptions options;
        options.tiling = {mode, 4 * factor, 4 * factor, 3 * factor, 3 * factor};
        options.stats = &stats;
        rig.decode(z, options, compute);
        const int64_t estimate = rig.decoder.memory_bytes(frames, 7, 8, compute, options.tiling);
        EXPECT_GE(estimate, stats.buffer_bytes) << frames;
        EXPECT_LE(static_cast<double>(estimate), 1.05 * static_cast<double>(stats.buffer_bytes))
            << frames << " frames, mode " << static_cast<int>(mode);
      }
    }
  }
}

// Refused, and by the check that is meant.
template <typename Action>
void refused(const std::string& says, Action action) {
  EXPECT_THAT(error_of(action), ::testing::HasSubstr(says));
}

TEST_P(VaeDecode, RejectsWrongInput) {
  Rig rig(GetParam());
  const int64_t c = rig.config.z_dim;
  const auto wrong = [&](DType dtype, std::initializer_list<int64_t> shape) {
    refused("vae decode: latents", [&] { rig.decode(Tensor(dtype, shape), {}); });
  };
  wrong(DType::f32, {c + 1, 1, 2, 2});
  wrong(DType::bf16, {c, 1, 2, 2});
  wrong(DType::f32, {c, 0, 2, 2});
  wrong(DType::f32, {c, 2, 2});
  const Tensor z = rig.latents(1, 5, 5);
  DecodeOptions options;
  options.frames_per_pass = 0;
  refused("0 frames per pass", [&] { rig.decode(z, options); });
  const int64_t factor = rig.config.spatial_factor();
  const auto tiled = [&](const std::string& says, const Tiling& tiling) {
    DecodeOptions with;
    with.tiling = tiling;
    refused("vae tiling: " + says, [&] { rig.decode(z, with); });
  };
  const int64_t side = 4 * factor;
  tiled(fmt::format("tile {} stride {}", side, 5 * factor),
        {TileMode::blend, side, side, 5 * factor, 5 * factor});
  tiled(fmt::format("tile {} stride 0", side), {TileMode::blend, side, side, 0, 0});
  tiled(fmt::format("tile {} stride", side + 1), {TileMode::blend, side + 1, side, factor, factor});
  tiled("tile 0 x 0", {TileMode::exact, 0, 0, 0, 0});
  tiled("tile -", {TileMode::exact, std::numeric_limits<int64_t>::min(), 64, 0, 0});
}

TEST_P(VaeDecode, ThreadCountDoesNotChangeBits) {
  Rig rig(GetParam());
  const Tensor z = rig.latents(2, 4, 5);
  for (const DType compute : {DType::f32, DType::bf16}) {
    set_num_threads(1);
    const Tensor one = rig.decode(z, {}, compute);
    set_num_threads(3);
    const Tensor three = rig.decode(z, {}, compute);
    EXPECT_EQ(std::memcmp(one.as<float>(), three.as<float>(),
                          static_cast<size_t>(one.numel()) * sizeof(float)),
              0);
  }
}

TEST_P(VaeDecode, CountsFrames) {
  Rig rig(GetParam());
  EXPECT_EQ(rig.decoder.frames_out(1), 1);
  EXPECT_EQ(rig.decoder.frames_out(21), 81);
  EXPECT_EQ(rig.decoder.latent_frames(81), 21);
  EXPECT_NE(error_of([&] { rig.decoder.latent_frames(80); }).find("80"), std::string::npos);
}

TEST_P(VaeDecode, EncoderNormalisesTheMode) {
  Rig rig(GetParam());
  Context ctx{*rig.backend, DType::f32};
  const WanEncoder encoder(rig.config, *rig.source);
  const int64_t side = 2 * rig.config.spatial_factor();
  const Tensor video = hash_tensor("px:decode_test", {3, 5, side, side}, 0.9);
  const Tensor raw = encoder.encode(ctx, video, false), norm = encoder.encode(ctx, video);
  ASSERT_EQ(raw.view().shape[1], 2);
  const int64_t per_channel = raw.numel() / rig.config.z_dim;
  for (int64_t i = 0; i < raw.numel(); ++i) {
    const auto c = static_cast<size_t>(i / per_channel);
    EXPECT_NEAR(norm.as<float>()[i],
                (raw.as<float>()[i] - rig.config.latents_mean[c]) / rig.config.latents_std[c],
                1e-5);
  }
  const auto wrong = [&](const std::string& says, std::initializer_list<int64_t> shape) {
    refused(says, [&] { encoder.encode(ctx, hash_tensor("x", shape)); });
  };
  wrong("vae: 4 frames", {3, 4, side, side});
  wrong("vae encode: video", {3, 5, side, side + 1});
  wrong("vae encode: video", {4, 5, side, side});
}

INSTANTIATE_TEST_SUITE_P(Versions, VaeDecode, ::testing::Values("tiny", "tiny-2.2"),
                         [](const ::testing::TestParamInfo<const char*>& info) {
                           return std::string(info.param) == "tiny" ? "wan21" : "wan22";
                         });

}  // namespace
}  // namespace lacuna
