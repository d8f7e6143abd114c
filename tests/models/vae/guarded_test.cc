// SPDX-License-Identifier: Apache-2.0
// The autoencoders with their activations in memory that the host cannot touch.
#include <gtest/gtest.h>

#include "lacuna/core/threads.h"
#include "lacuna/models/vae/linear_autoencoder.h"
#include "lacuna/models/vae/wan_decoder.h"
#include "lacuna/models/vae/wan_encoder.h"
#include "tests/models/vae/joint_configs.h"
#include "tests/models/vae/support.h"
#include "tests/support/guarded_backend.h"

namespace lacuna::test {
namespace {

class GuardedVae : public ::testing::TestWithParam<std::tuple<const char*, DType>> {
 protected:
  void SetUp() override { set_num_threads(1); }
  void TearDown() override { set_num_threads(threads_); }

  // `code` with both backends.
  template <typename Code>
  void expect_same(const Code& code) {
    const auto run = [&](Backend& backend) {
      Context ctx{backend, std::get<1>(GetParam())};
      return code(ctx);
    };
    const auto plain = make_backend("cpu");
    GuardedBackend guarded(make_backend("cpu"));
    EXPECT_TRUE(same_bytes(run(guarded), run(*plain)));
    EXPECT_EQ(guarded.allocations(), 0u);
  }

 private:
  int threads_ = num_threads();
};

TEST_P(GuardedVae, DecodesToTheSameBytes) {
  const VaeConfig config = vae_preset(std::get<0>(GetParam()));
  const auto source = hash_weights("w:", DType::f32);
  const WanDecoder decoder(config, *source);
  const Tensor z = lacuna::testing::hash_tensor("z", {config.z_dim, 3, 7, 8});
  const int64_t f = config.spatial_factor();
  for (const TileMode mode : {TileMode::off, TileMode::exact, TileMode::blend}) {
    DecodeOptions options;
    options.tiling = {mode, 4 * f, 4 * f, 2 * f, 2 * f};
    options.frames_per_pass = mode == TileMode::off ? 2 : 1;
    expect_same([&](Context& ctx) { return decode_video(decoder, ctx, z, options); });
  }
}

TEST_P(GuardedVae, OnlyPixelsComeToTheHost) {
  const VaeConfig config = vae_preset(std::get<0>(GetParam()));
  const DType compute = std::get<1>(GetParam());
  const auto source = hash_weights("w:", DType::f32);
  const WanDecoder decoder(config, *source);
  GuardedBackend guarded(make_backend("cpu"));
  Context ctx{guarded, compute};
  const Tensor video =
      decode_video(decoder, ctx, lacuna::testing::hash_tensor("z", {config.z_dim, 2, 6, 6}));
  EXPECT_EQ(guarded.downloaded_bytes, storage_bytes(compute, video.numel()));
}

TEST_P(GuardedVae, EncodesToTheSameBytes) {
  const VaeConfig config = vae_preset(std::get<0>(GetParam()));
  const auto source = hash_weights("w:", DType::bf16);
  const WanEncoder encoder(config, *source);
  const int64_t side = 3 * config.spatial_factor();
  const Tensor video = lacuna::testing::hash_tensor("video", {3, 9, side, side}, 0.9);
  expect_same([&](Context& ctx) { return encoder.encode(ctx, video); });
}

TEST_P(GuardedVae, EncodesInTheMemoryThatItSays) {
  const VaeConfig config = vae_preset(std::get<0>(GetParam()));
  const DType compute = std::get<1>(GetParam());
  const auto source = hash_weights("w:", DType::f32);
  const WanEncoder encoder(config, *source);
  GuardedBackend guarded(make_backend("cpu"));
  Context ctx{guarded, compute};
  for (const int64_t frames :
       {int64_t{1}, 1 + config.temporal_factor(), 9 * config.temporal_factor() + 1}) {
    const VideoSize size{frames, 192, 320};
    guarded.most_allocated = 0;
    encoder.encode_frames(ctx, size, [&](int64_t, const TensorView& part) {
      std::fill_n(part.as<float>(), part.numel(), 0.5f);
    });
    // With what convolutions take for their last taps; pixels lie on the host.
    const auto took = static_cast<double>(guarded.most_allocated - ctx.workspace.bytes());
    const auto pixels =
        4 * 3 * (frames == 1 ? 1 : config.temporal_factor()) * size.height * size.width;
    const auto said = static_cast<double>(encoder.memory_bytes(size, compute) - pixels);
    EXPECT_LE(said, took) << frames;
    EXPECT_GE(said, 0.98 * took) << frames;
  }
}

INSTANTIATE_TEST_SUITE_P(Tiny, GuardedVae,
                         ::testing::Combine(::testing::Values("tiny", "tiny-2.2"),
                                            ::testing::Values(DType::f32, DType::bf16)),
                         [](const auto& info) {
                           std::string name = fmt::format("{}_{}", std::get<0>(info.param),
                                                          dtype_name(std::get<1>(info.param)));
                           std::replace_if(
                               name.begin(), name.end(),
                               [](char c) { return c == '-' || c == '.'; }, '_');
                           return name;
                         });

class GuardedJointVae : public ::testing::TestWithParam<std::tuple<const char*, DType>> {};

TEST_P(GuardedJointVae, DecodesToTheSameBytes) {
  const auto& [config, compute] = GetParam();
  const auto source = hash_weights("w:", DType::f32);
  const auto decoder = make_video_decoder(config, "config.json", *source);
  const bool mochi = config == lacuna::testing::kTinyMochiVae;
  const Tensor z = lacuna::testing::hash_tensor("z", {4, mochi ? 2 : 6, 3, 4});
  const auto plain = make_backend("cpu");
  GuardedBackend guarded(make_backend("cpu"));
  for (const TileMode mode : {TileMode::off, TileMode::blend}) {
    DecodeOptions options;
    options.tiling = {mode, 16, 24, 16, 16};
    const auto run = [&, compute = compute](Backend& backend) {
      Context ctx{backend, compute};
      return decode_video(*decoder, ctx, z, options);
    };
    EXPECT_TRUE(same_bytes(run(guarded), run(*plain)));
    EXPECT_EQ(guarded.allocations(), 0u);
  }
}

INSTANTIATE_TEST_SUITE_P(Tiny, GuardedJointVae,
                         ::testing::Combine(::testing::Values(lacuna::testing::kTinyMochiVae,
                                                              lacuna::testing::kTinyHunyuanVae),
                                            ::testing::Values(DType::f32, DType::bf16)),
                         [](const auto& info) {
                           const bool mochi =
                               std::get<0>(info.param) == lacuna::testing::kTinyMochiVae;
                           return fmt::format("{}_{}", mochi ? "mochi" : "hunyuan",
                                              dtype_name(std::get<1>(info.param)));
                         });

TEST(GuardedLinearAutoencoder, CodesToTheSameBytes) {
  lacuna::testing::MemorySource source;
  source.tensors.emplace("mean", lacuna::testing::hash_tensor("mean", {48}, 0.2));
  source.tensors.emplace("basis", lacuna::testing::hash_tensor("basis", {12, 48}, 0.2));
  source.tensors.emplace("scale", Tensor(DType::f32, {12}));
  std::fill_n(source.tensors.at("scale").as<float>(), 12, 0.1f);
  const LinearVideoAutoencoder coder({4, 12}, source);
  const Tensor z = lacuna::testing::hash_tensor("z", {12, 3, 2, 5}, 0.9);
  const auto plain = make_backend("cpu");
  GuardedBackend guarded(make_backend("cpu"));
  const auto round_trip = [&](Backend& backend) {
    Context ctx{backend, DType::bf16};
    return coder.encode(ctx, decode_video(coder, ctx, z));
  };
  EXPECT_TRUE(same_bytes(round_trip(guarded), round_trip(*plain)));
}

}  // namespace
}  // namespace lacuna::test
