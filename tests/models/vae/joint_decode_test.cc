// SPDX-License-Identifier: Apache-2.0
// Properties of the Mochi and HunyuanVideo decoders that need no reference numbers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "lacuna/core/threads.h"
#include "lacuna/models/vae/hunyuan_decoder.h"
#include "lacuna/models/vae/mochi_decoder.h"
#include "tests/models/vae/joint_configs.h"
#include "tests/models/vae/support.h"

namespace lacuna {
namespace {

using testing::error_of;
using testing::hash_tensor;
using testing::kTinyHunyuanVae;
using testing::kTinyMochiVae;
using testing::worst_error;

constexpr int64_t kFactor = 8, kChannels = 4;

struct Rig {
  std::unique_ptr<WeightSource> source = hash_weights("w:", DType::f32);
  std::unique_ptr<Backend> backend = testing::quick_backend();
  std::unique_ptr<VideoDecoder> decoder;

  explicit Rig(std::string_view config)
      : decoder(make_video_decoder(config, "vae/config.json", *source)) {}

  Tensor decode(const TensorView& latents, const DecodeOptions& options,
                DType compute = DType::f32) {
    Context ctx{*backend, compute};
    return decode_video(*decoder, ctx, latents, options);
  }
};

Tensor latents_of(int64_t t, int64_t h, int64_t w) {
  return hash_tensor("z:joint_decode_test", {kChannels, t, h, w});
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

bool same_values(const TensorView& a, const TensorView& b) {
  return a.numel() == b.numel() &&
         std::memcmp(a.as<float>(), b.as<float>(), static_cast<size_t>(a.numel()) * 4) == 0;
}

// Thousands of tiny operations: one thread is faster than waking two, above all on a busy machine.
class JointDecode : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override { set_num_threads(1); }
  void TearDown() override { set_num_threads(threads_); }
  bool mochi() const { return GetParam() == kTinyMochiVae; }

 private:
  int threads_ = num_threads();
};

TEST_P(JointDecode, StatisticsAreAppliedPerChannel) {
  Rig rig(GetParam());
  const Tensor z = latents_of(1, 2, 3);
  constexpr float kMean[] = {0.1f, -0.2f, 0.3f, -0.4f}, kStd[] = {1.5f, 0.5f, 2.0f, 1.0f};
  Tensor scaled(DType::f32, {kChannels, 1, 2, 3});
  for (int64_t i = 0; i < z.numel(); ++i) {
    scaled.as<float>()[i] =
        mochi() ? z.as<float>()[i] * kStd[i / 6] + kMean[i / 6] : z.as<float>()[i] / 0.476986f;
  }
  DecodeOptions raw;
  raw.denormalize = false;
  EXPECT_LE(worst_error(rig.decode(z, {}), rig.decode(scaled, raw)), 1e-5);
  EXPECT_GT(worst_error(rig.decode(z, {}), rig.decode(z, raw)), 1e-2);
}

TEST_P(JointDecode, SinkSeesFramesInOrderAsTheyAreDone) {
  Rig rig(GetParam());
  Context ctx{*rig.backend, DType::f32};
  const int64_t frames = mochi() ? 3 : 6;
  std::vector<int64_t> chunks, done;
  DecodeOptions options;
  options.progress = [&](int64_t i, int64_t n) {
    EXPECT_EQ(n, mochi() ? 3 : 5 + 3);
    done.push_back(i);
  };
  rig.decoder->decode(ctx, latents_of(frames, 2, 3), options, [&](const TensorView& part) {
    EXPECT_EQ(part.shape[1], 2 * kFactor);
    EXPECT_EQ(part.shape[3], 3);
    for (int64_t i = 0; i < part.numel(); ++i) ASSERT_LE(std::abs(part.as<float>()[i]), 1.0f);
    chunks.push_back(part.shape[0]);
  });
  if (mochi()) {
    EXPECT_EQ(chunks, (std::vector<int64_t>{1, 6, 6}));
    EXPECT_EQ(done, (std::vector<int64_t>{1, 2, 3}));
  } else {
    EXPECT_EQ(chunks, (std::vector<int64_t>{4, 4, 4, 1, 4, 4}));  // 13 frames, then 8
    EXPECT_EQ(done, (std::vector<int64_t>{5, 8}));
  }
}

TEST_P(JointDecode, ProgressCanStopIt) {
  Rig rig(GetParam());
  DecodeOptions options;
  options.progress = [](int64_t, int64_t) { fail("stopped"); };
  EXPECT_EQ(error_of([&] { rig.decode(latents_of(2, 2, 2), options); }), "stopped");
}

TEST_P(JointDecode, BlendTilingIsApproximateOnly) {
  Rig rig(GetParam());
  const Tensor z = latents_of(2, 4, 5);
  DecodeOptions options;
  options.tiling = {TileMode::blend, 3 * kFactor, 3 * kFactor, 2 * kFactor, 2 * kFactor};
  int64_t last = 0, total = 0;
  options.progress = [&](int64_t done, int64_t all) { last = done, total = all; };
  const Tensor blended = rig.decode(z, options);
  EXPECT_EQ(total, 2 * 2 * 3);  // latent frames x tile rows x tile columns
  EXPECT_EQ(last, total);
  const ErrorStats stats = compare(blended, rig.decode(z, {}));
  EXPECT_GT(stats.rel_l2, 1e-3);
  EXPECT_LT(stats.rel_l2, 1.0);
}

// A frame that fits one tile is decoded as without tiling, bit for bit.
TEST_P(JointDecode, TilingLeavesSmallFramesAlone) {
  Rig rig(GetParam());
  const Tensor z = latents_of(2, 2, 3);
  const Tensor whole = rig.decode(z, {});
  for (const TileMode mode : {TileMode::blend, TileMode::exact}) {
    DecodeOptions options;
    options.tiling.mode = mode;
    EXPECT_TRUE(same_values(rig.decode(z, options), whole));
  }
}

TEST_P(JointDecode, MemoryEstimateCoversWhatIsHeld) {
  Rig rig(GetParam());
  for (const TileMode mode : {TileMode::off, TileMode::blend}) {
    for (const int64_t frames : {1, mochi() ? 3 : 4, mochi() ? 2 : 8}) {
      for (const DType compute : {DType::f32, DType::bf16}) {
        DecodeStats stats;
        DecodeOptions options;
        options.tiling = {mode, 4 * kFactor, 4 * kFactor, 3 * kFactor, 3 * kFactor};
        options.stats = &stats;
        rig.decode(latents_of(frames, 7, 8), options, compute);
        const int64_t estimate = rig.decoder->memory_bytes(frames, 7, 8, compute, options.tiling);
        EXPECT_GE(estimate, stats.buffer_bytes) << frames;
        EXPECT_LE(static_cast<double>(estimate), 1.05 * static_cast<double>(stats.buffer_bytes))
            << frames << " frames, mode " << static_cast<int>(mode);
      }
    }
  }
}

TEST_P(JointDecode, MemoryDoesNotGrowWithTheClip) {
  Rig rig(GetParam());
  const int64_t some = rig.decoder->memory_bytes(8, 60, 106, DType::bf16, {});
  EXPECT_EQ(rig.decoder->memory_bytes(int64_t{1} << 20, 60, 106, DType::bf16, {}), some);
}

TEST_P(JointDecode, ThreadCountDoesNotChangeBits) {
  Rig rig(GetParam());
  const Tensor z = latents_of(2, 2, 3);
  for (const DType compute : {DType::f32, DType::bf16}) {
    set_num_threads(1);
    const Tensor one = rig.decode(z, {}, compute);
    set_num_threads(2);
    EXPECT_TRUE(same_values(one, rig.decode(z, {}, compute)));
  }
}

TEST_P(JointDecode, CountsFrames) {
  Rig rig(GetParam());
  const int64_t factor = mochi() ? 6 : 4;
  EXPECT_EQ(rig.decoder->latent_channels(), kChannels);
  EXPECT_EQ(rig.decoder->spatial_factor(), kFactor);
  EXPECT_EQ(rig.decoder->frames_out(1), 1);
  EXPECT_EQ(rig.decoder->frames_out(28), 1 + 27 * factor);
  EXPECT_EQ(rig.decoder->latent_frames(1 + 27 * factor), 28);
  EXPECT_THAT(error_of([&] { rig.decoder->latent_frames(80); }), ::testing::HasSubstr("80"));
}

TEST_P(JointDecode, RejectsWrongInput) {
  Rig rig(GetParam());
  const auto refused = [&](const std::string& says, const TensorView& z,
                           const DecodeOptions& options) {
    EXPECT_THAT(error_of([&] { rig.decode(z, options); }), ::testing::HasSubstr(says));
  };
  refused("vae decode: latents", Tensor(DType::f32, {kChannels + 1, 1, 2, 2}), {});
  refused("vae decode: latents", Tensor(DType::bf16, {kChannels, 1, 2, 2}), {});
  refused("vae decode: latents", Tensor(DType::f32, {kChannels, 0, 2, 2}), {});
  const Tensor z = latents_of(1, 4, 5);
  DecodeOptions options;
  options.tiling = {TileMode::exact, 2 * kFactor, 2 * kFactor, 0, 0};
  refused("norms see whole frames", z, options);
  EXPECT_THAT(error_of([&] { rig.decoder->memory_bytes(1, 4, 5, DType::f32, options.tiling); }),
              ::testing::HasSubstr("norms see whole frames"));
  options.tiling = {TileMode::blend, 2 * kFactor, 2 * kFactor, 3 * kFactor, kFactor};
  refused("vae tiling: tile 16 stride 24", z, options);
  EXPECT_THAT(error_of([&] { rig.decoder->memory_bytes(0, 4, 5, DType::f32, {}); }),
              ::testing::HasSubstr("vae memory: latents 0"));
}

TEST_P(JointDecode, MissingTensorsAreListedAtOnce) {
  testing::MemorySource empty;
  const std::string said =
      error_of([&] { make_video_decoder(GetParam(), "vae/config.json", empty); });
  EXPECT_THAT(said, ::testing::HasSubstr("decoder.conv_in."));
  EXPECT_THAT(said, ::testing::HasSubstr(mochi() ? "lacks 66 tensors" : "lacks 106 tensors"));
}

TEST_P(JointDecode, HasNoEncoder) {
  const auto source = hash_weights("w:", DType::f32);
  EXPECT_THAT(error_of([&] { make_video_encoder(GetParam(), "vae/config.json", *source); }),
              ::testing::HasSubstr("expected AutoencoderKLWan"));
}

INSTANTIATE_TEST_SUITE_P(Classes, JointDecode, ::testing::Values(kTinyMochiVae, kTinyHunyuanVae),
                         [](const ::testing::TestParamInfo<const char*>& info) {
                           return info.param == kTinyMochiVae ? "mochi" : "hunyuan";
                         });

// Frames in pieces, windows and passes of every length come out the same.
TEST(MochiDecode, StreamingEqualsWholeClip) {
  Rig rig(kTinyMochiVae);
  const Tensor z = latents_of(3, 2, 3);
  DecodeOptions options;
  const Tensor streamed = rig.decode(z, options);
  for (const int64_t frames : {2, 3}) {
    options.frames_per_pass = frames;
    EXPECT_LE(worst_error(rig.decode(z, options), streamed), 1e-5) << frames << " frames per pass";
  }
}

// A causal decoder: later latents cannot change earlier frames.
TEST(MochiDecode, FirstFramesDoNotDependOnLaterLatents) {
  Rig rig(kTinyMochiVae);
  const Tensor z = latents_of(3, 2, 3);
  const Tensor all = rig.decode(z, {}), some = rig.decode(first_frames(z, 2), {});
  EXPECT_EQ(all.view().shape[1], 13);
  EXPECT_TRUE(same_values(first_frames(all, 7), some));
}

TEST(HunyuanDecode, PiecesAreUpstreams) {
  const auto pieces = [](int64_t frames) {
    std::vector<std::pair<int64_t, int64_t>> list;
    for (const Span piece : hunyuan_pieces(frames)) list.emplace_back(piece.begin, piece.end);
    return list;
  };
  using List = std::vector<std::pair<int64_t, int64_t>>;
  EXPECT_EQ(pieces(1), (List{{0, 1}}));
  EXPECT_EQ(pieces(4), (List{{0, 4}}));
  EXPECT_EQ(pieces(5), (List{{0, 5}, {3, 5}}));
  EXPECT_EQ(pieces(7), (List{{0, 5}, {3, 7}}));
  EXPECT_EQ(pieces(8), (List{{0, 5}, {3, 8}, {6, 8}}));
}

// Every length gives its number of frames, and the pieces before a change stay as they are.
TEST(HunyuanDecode, EveryLengthHasItsFrames) {
  Rig rig(kTinyHunyuanVae);
  const Tensor z = latents_of(11, 1, 2);
  const Tensor longest = rig.decode(z, {});
  for (int64_t frames = 1; frames <= 11; ++frames) {
    const Tensor video = rig.decode(first_frames(z, frames), {});
    EXPECT_EQ(video.view().shape[1], 4 * frames - 3);
    // Whole pieces of 5 latent frames are those of the longest clip.
    const int64_t same = frames < 5 ? 0 : ((frames - 5) / 3 + 1) * 12 + 1;
    if (same > 0) {
      EXPECT_TRUE(same_values(first_frames(video, same), first_frames(longest, same))) << frames;
    }
  }
}

// Without the middle attention a decoder has fewer tensors, and is another.
TEST(HunyuanDecode, MiddleAttentionCanBeAbsent) {
  std::string config = kTinyHunyuanVae;
  config.insert(config.size() - 1, R"(, "mid_block_add_attention": false)");
  testing::Recorder with, without;
  make_video_decoder(kTinyHunyuanVae, "config.json", with);
  make_video_decoder(config, "config.json", without);
  EXPECT_EQ(with.asked.size(), without.asked.size() + 10);
  EXPECT_TRUE(with.asked.contains("decoder.mid_block.attentions.0.to_out.0.bias"));
  Rig one(kTinyHunyuanVae), other(config);
  const Tensor z = latents_of(2, 2, 2);
  EXPECT_GT(worst_error(one.decode(z, {}), other.decode(z, {})), 1e-3);
}

}  // namespace
}  // namespace lacuna
