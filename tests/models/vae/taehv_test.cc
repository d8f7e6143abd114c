// SPDX-License-Identifier: Apache-2.0
// Properties of the tiny decoders that need no reference numbers, and what is refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "lacuna/core/threads.h"
#include "lacuna/models/vae/taehv_decoder.h"
#include "tests/models/vae/support.h"
#include "tests/support/guarded_backend.h"

namespace lacuna {
namespace {

using testing::error_of;
using testing::hash_tensor;
using ::testing::HasSubstr;
using testing::worst_error;

struct Variant {
  const char* name;
  TaehvConfig config;
};

// The published ones, with fewer channels.
constexpr Variant kVariants[] = {
    {"taew2_1", {16, 1, {16, 12, 8, 8}, {1, 2, 2}}},
    {"taew2_2", {48, 2, {16, 12, 8, 8}, {1, 2, 2}}},
    {"taehv", {16, 1, {8, 8, 4, 12}, {1, 2, 2}}},
    {"taem1", {12, 1, {16, 12, 8, 8}, {1, 2, 3}}},
    {"all_levels", {4, 4, {8, 8, 8, 8}, {2, 2, 2}}},
};

struct Rig {
  std::unique_ptr<WeightSource> source = hash_weights("w:", DType::f32);
  std::unique_ptr<Backend> backend = testing::quick_backend();
  TaehvDecoder decoder;

  explicit Rig(const TaehvConfig& config) : decoder(config, *source) {}

  Tensor decode(const TensorView& latents, const DecodeOptions& options = {},
                DType compute = DType::f32) {
    Context ctx{*backend, compute};
    return decode_video(decoder, ctx, latents, options);
  }
};

bool same_values(const TensorView& a, const TensorView& b) {
  return a.numel() == b.numel() &&
         std::memcmp(a.as<float>(), b.as<float>(), static_cast<size_t>(a.numel()) * 4) == 0;
}

// The first `kept` frames of each channel.
Tensor first_frames(const TensorView& clip, int64_t kept) {
  const int64_t frame = clip.shape[2] * clip.shape[3];
  Tensor part(DType::f32, {clip.shape[0], kept, clip.shape[2], clip.shape[3]});
  for (int64_t c = 0; c < clip.shape[0]; ++c) {
    std::memcpy(part.as<float>() + c * kept * frame, clip.as<float>() + c * clip.shape[1] * frame,
                static_cast<size_t>(kept * frame) * sizeof(float));
  }
  return part;
}

// One thread: thousands of tiny operations.
class Taehv : public ::testing::TestWithParam<Variant> {
 protected:
  void SetUp() override { set_num_threads(1); }
  void TearDown() override { set_num_threads(threads_); }
  const TaehvConfig& config() const { return GetParam().config; }
  Tensor latents(int64_t t, int64_t h, int64_t w) const {
    return hash_tensor("z:taehv_test", {config().latent_channels, t, h, w});
  }

 private:
  int threads_ = num_threads();
};

TEST_P(Taehv, StreamingEqualsWholeClip) {
  Rig rig(config());
  const Tensor z = latents(4, 2, 3);
  DecodeOptions options;
  const Tensor streamed = rig.decode(z, options);
  EXPECT_EQ(streamed.view().shape[1], 1 + 3 * config().temporal_factor());
  EXPECT_EQ(streamed.view().shape[2], 2 * config().spatial_factor());
  EXPECT_EQ(streamed.view().shape[3], 3 * config().spatial_factor());
  for (const int64_t frames : {2, 3, 4, 9}) {
    options.frames_per_pass = frames;
    EXPECT_LE(worst_error(rig.decode(z, options), streamed), 1e-5) << frames << " frames per pass";
  }
}

// Causal: later latents cannot change earlier frames, and one frame is a video.
TEST_P(Taehv, FirstFramesDoNotDependOnLaterLatents) {
  Rig rig(config());
  const Tensor z = latents(3, 3, 1);
  const Tensor all = rig.decode(z);
  for (const int64_t kept : {1, 2}) {
    const Tensor some = rig.decode(first_frames(z, kept));
    EXPECT_TRUE(same_values(first_frames(all, rig.decoder.frames_out(kept)), some)) << kept;
  }
}

TEST_P(Taehv, SmallestMap) {
  Rig rig(config());
  const Tensor video = rig.decode(latents(1, 1, 1));
  EXPECT_EQ(video.numel(), 3 * config().spatial_factor() * config().spatial_factor());
}

TEST_P(Taehv, LatentsAreTakenAsTheyAre) {
  Rig rig(config());
  const Tensor z = latents(2, 2, 2);
  DecodeOptions raw;
  raw.denormalize = false;
  EXPECT_TRUE(same_values(rig.decode(z), rig.decode(z, raw)));
}

TEST_P(Taehv, FramesGoToTheSinkOneByOne) {
  Rig rig(config());
  Context ctx{*rig.backend, DType::f32};
  std::vector<int64_t> done;
  int64_t frames = 0;
  DecodeOptions options;
  options.progress = [&](int64_t i, int64_t n) {
    EXPECT_EQ(n, 3);
    EXPECT_EQ(frames, rig.decoder.frames_out(i));
    done.push_back(i);
  };
  double low = 1.0, high = -1.0;
  rig.decoder.decode(ctx, latents(3, 2, 3), options, [&](const TensorView& part) {
    EXPECT_EQ(part.shape[0], 1);
    EXPECT_EQ(part.shape[3], 3);
    for (int64_t i = 0; i < part.numel(); ++i) {
      low = std::min<double>(low, part.as<float>()[i]);
      high = std::max<double>(high, part.as<float>()[i]);
    }
    ++frames;
  });
  EXPECT_EQ(done, (std::vector<int64_t>{1, 2, 3}));
  EXPECT_GE(low, -1.0);
  EXPECT_LE(high, 1.0);
  EXPECT_LT(low, -0.5);  // the whole of the range, not 0 to 1
}

TEST_P(Taehv, LengthsAreEachOthersInverse) {
  Rig rig(config());
  EXPECT_EQ(rig.decoder.frames_out(0), 0);
  for (int64_t latent = 1; latent < 50; ++latent)
    EXPECT_EQ(rig.decoder.latent_frames(rig.decoder.frames_out(latent)), latent);
  EXPECT_THROW(rig.decoder.latent_frames(2), Error);
  EXPECT_THROW(rig.decoder.latent_frames(0), Error);
}

TEST_P(Taehv, BlendIsApproximateAndLeavesSmallFramesAlone) {
  Rig rig(config());
  const Tensor z = latents(2, 4, 5);
  const int64_t f = config().spatial_factor();
  const Tensor whole = rig.decode(z);
  DecodeOptions options;
  options.tiling = {TileMode::blend, 3 * f, 3 * f, 2 * f, 2 * f};
  const ErrorStats stats = compare(rig.decode(z, options), whole);
  EXPECT_GT(stats.rel_l2, 1e-3);
  EXPECT_LT(stats.rel_l2, 1.0);
  options.tiling = {TileMode::blend, 5 * f, 5 * f, 2 * f, 2 * f};
  EXPECT_TRUE(same_values(rig.decode(z, options), whole));
}

TEST_P(Taehv, MemoryEstimateCoversWhatIsHeld) {
  Rig rig(config());
  const int64_t f = config().spatial_factor();
  for (const TileMode mode : {TileMode::off, TileMode::blend})
    for (const int64_t frames : {1, 3})
      for (const DType compute : {DType::f32, DType::bf16}) {
        DecodeStats stats;
        DecodeOptions options;
        options.tiling = {mode, 4 * f, 4 * f, 3 * f, 3 * f};
        options.stats = &stats;
        rig.decode(latents(frames, 7, 8), options, compute);
        const int64_t estimate = rig.decoder.memory_bytes(frames, 7, 8, compute, options.tiling);
        EXPECT_GE(estimate, stats.buffer_bytes) << frames;
        // The largest tile is not the last one, when most is held beside it.
        const double slack = mode == TileMode::off ? 1.05 : 1.1;
        EXPECT_LE(static_cast<double>(estimate), slack * static_cast<double>(stats.buffer_bytes))
            << frames << " frames, mode " << static_cast<int>(mode);
      }
  EXPECT_EQ(rig.decoder.memory_bytes(int64_t{1} << 20, 60, 104, DType::bf16, {}),
            rig.decoder.memory_bytes(8, 60, 104, DType::bf16, {}));
}

TEST_P(Taehv, ThreadCountDoesNotChangeBits) {
  const Tensor z = latents(2, 2, 3);
  for (const DType compute : {DType::f32, DType::bf16}) {
    set_num_threads(1);
    const Tensor one = Rig(config()).decode(z, {}, compute);
    set_num_threads(2);
    EXPECT_TRUE(same_values(one, Rig(config()).decode(z, {}, compute)));
  }
}

TEST_P(Taehv, WorksInMemoryThatTheHostCannotTouch) {
  const auto source = hash_weights("w:", DType::f32);
  const TaehvDecoder decoder(config(), *source);
  const Tensor z = latents(2, 3, 3);
  DecodeOptions options;
  const int64_t f = config().spatial_factor();
  options.tiling = {TileMode::blend, 2 * f, 2 * f, f, f};
  for (const bool tiled : {false, true}) {
    const auto plain = make_backend("cpu");
    test::GuardedBackend guarded(make_backend("cpu"));
    Context open{*plain, DType::bf16}, closed{guarded, DType::bf16};
    const DecodeOptions how = tiled ? options : DecodeOptions{};
    EXPECT_TRUE(
        same_values(decode_video(decoder, open, z, how), decode_video(decoder, closed, z, how)));
  }
}

// A file tells its sizes by the shapes of its tensors, and so decodes as the config says.
TEST_P(Taehv, SizesAreReadOffTheTensors) {
  testing::Recorder names;
  const TaehvDecoder plain(config(), names);
  testing::MemorySource file;
  for (const auto& [name, shape] : names.asked) {
    const TensorView made = names.load(name, shape);
    Tensor copy(DType::f32, shape);
    std::memcpy(copy.as<float>(), made.as<float>(), static_cast<size_t>(made.numel()) * 4);
    file.tensors.emplace(name, std::move(copy));
  }
  const TaehvConfig read = infer_taehv_config(file, "tiny.safetensors");
  EXPECT_EQ(read.latent_channels, config().latent_channels);
  EXPECT_EQ(read.patch_size, config().patch_size);
  EXPECT_EQ(read.channels, config().channels);
  EXPECT_EQ(read.time_factors, config().time_factors);
  const TaehvDecoder decoder(read, file);
  const auto backend = testing::quick_backend();
  Context ctx{*backend};
  const Tensor z = latents(2, 2, 2);
  EXPECT_TRUE(same_values(decode_video(decoder, ctx, z), Rig(config()).decode(z)));
}

INSTANTIATE_TEST_SUITE_P(Variants, Taehv, ::testing::ValuesIn(kVariants),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(TaehvRefusals, TilesAndLatentsThatItDoesNotHave) {
  Rig rig(kVariants[0].config);
  const Tensor z = hash_tensor("z", {16, 1, 4, 5});
  DecodeOptions options;
  options.tiling = {TileMode::exact, 16, 16, 16, 16};
  EXPECT_THAT(error_of([&] { rig.decode(z, options); }), HasSubstr("expected off or blend"));
  EXPECT_THAT(error_of([&] { rig.decoder.memory_bytes(1, 4, 5, DType::f32, options.tiling); }),
              HasSubstr("exact for TAEHV"));
  EXPECT_FALSE(rig.decoder.takes_exact_tiles());
  EXPECT_THAT(error_of([&] {
                rig.decode(hash_tensor("z", {12, 1, 2, 2}));
              }),
              HasSubstr("expected contiguous [16, T, h, w]"));
  EXPECT_THAT(error_of([&] { rig.decoder.memory_bytes(0, 4, 5, DType::f32, {}); }),
              HasSubstr("vae memory: latents 0"));
}

TEST(TaehvRefusals, MissingTensorsAreListedAtOnce) {
  testing::MemorySource empty;
  EXPECT_THAT(error_of([&] { TaehvDecoder(TaehvConfig(), empty); }), HasSubstr("lacks 64 tensors"));
}

TEST(TaehvRefusals, Configs) {
  const auto refused = [](const char* json, const char* why) {
    EXPECT_THAT(error_of([&] { parse_taehv_config(json, "c.json"); }), HasSubstr(why)) << json;
  };
  refused("[]", "c.json: not a JSON object");
  refused(R"({"latent_channels": 0})", "latent_channels is 0, expected 1 to 1024");
  refused(R"({"patch_size": 9})", "patch_size is 9, expected 1 to 8");
  refused(R"({"channels": [8, 8, 8]})", "channels has 3 entries, expected 4");
  refused(R"({"channels": [8, 8, 8, 5000]})", "channels is 5000");
  refused(R"({"time_factors": [1, 2, 5]})", "time_factors is 5, expected 1 to 4");
  refused(R"({"time_factors": [1, 2, "2"]})", "time_factors is string");
}

// Shapes of a file, of which one is another.
TEST(TaehvRefusals, ShapesOfNoSuchDecoder) {
  const auto file_with = [](const std::string& changed, std::initializer_list<int64_t> shape) {
    testing::MemorySource file;
    const auto put = [&](const std::string& name, std::initializer_list<int64_t> sizes) {
      if (name == changed) {
        if (shape.size() > 0) file.tensors.emplace(name, Tensor::zeros(DType::f32, shape));
      } else {
        file.tensors.emplace(name, Tensor::zeros(DType::f32, sizes));
      }
    };
    put("decoder.1.weight", {8, 4, 3, 3});
    put("decoder.7.conv.weight", {8, 8, 1, 1});
    put("decoder.8.weight", {8, 8, 3, 3});
    put("decoder.13.conv.weight", {16, 8, 1, 1});
    put("decoder.14.weight", {8, 8, 3, 3});
    put("decoder.19.conv.weight", {16, 8, 1, 1});
    put("decoder.20.weight", {8, 8, 3, 3});
    put("decoder.22.weight", {12, 8, 3, 3});
    return error_of([&] {
      const TaehvConfig config = infer_taehv_config(file, "x.safetensors");
      EXPECT_EQ(config.patch_size, 2);
    });
  };
  EXPECT_EQ(file_with("", {}), "");
  EXPECT_THAT(file_with("decoder.19.conv.weight", {}),
              HasSubstr("x.safetensors: no decoder.19.conv.weight"));
  EXPECT_THAT(file_with("decoder.13.conv.weight", {12, 8, 1, 1}), HasSubstr("a multiple of 8"));
  EXPECT_THAT(file_with("decoder.13.conv.weight", {8, 8, 3, 3}),
              HasSubstr("[rows, columns, 1, 1]"));
  EXPECT_THAT(file_with("decoder.13.conv.weight", {40, 8, 1, 1}),
              HasSubstr("time_factors is 5, expected 1 to 4"));
  EXPECT_THAT(file_with("decoder.22.weight", {9, 8, 3, 3}), HasSubstr("expected 3 times a square"));
  EXPECT_THAT(file_with("decoder.1.weight", {8, 4}), HasSubstr("has 2 dimensions"));
  EXPECT_THAT(file_with("decoder.1.weight", {8, 2000, 3, 3}), HasSubstr("latent_channels is 2000"));
}

}  // namespace
}  // namespace lacuna
