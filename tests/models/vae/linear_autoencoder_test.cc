// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/vae/linear_autoencoder.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/models/vae/support.h"

namespace lacuna {
namespace {

using testing::error_of;
using testing::hash_tensor;

constexpr const char* kConfig =
    R"({"_class_name": "LinearVideoAutoencoder", "patch_size": 4, "latent_channels": 12})";
constexpr int64_t kPatch = 4, kComponents = 12, kValues = 48;

// Random orthonormal rows (Gram-Schmidt), mean and scale.
testing::MemorySource make_source() {
  testing::MemorySource source;
  Tensor basis = hash_tensor("basis", {kComponents, kValues});
  for (int64_t k = 0; k < kComponents; ++k) {
    float* row = basis.as<float>() + k * kValues;
    for (int64_t j = 0; j <= k; ++j) {
      const float* other = basis.as<float>() + j * kValues;
      double dot = 0.0;
      for (int64_t i = 0; i < kValues; ++i) dot += static_cast<double>(row[i]) * other[i];
      const double factor = j < k ? -dot : 1.0 / std::sqrt(dot) - 1.0;
      for (int64_t i = 0; i < kValues; ++i) row[i] += static_cast<float>(factor * other[i]);
    }
  }
  Tensor scale(DType::f32, {kComponents});
  for (int64_t k = 0; k < kComponents; ++k) {
    scale.as<float>()[k] = 0.05f + 0.01f * static_cast<float>(k);
  }
  source.tensors.emplace("basis", std::move(basis));
  source.tensors.emplace("mean", hash_tensor("mean", {kValues}, 0.2));
  source.tensors.emplace("scale", std::move(scale));
  return source;
}

TEST(LinearAutoencoder, LatentsSurviveTheRoundTrip) {
  testing::MemorySource source = make_source();
  const auto decoder = make_video_decoder(kConfig, "vae/config.json", source);
  const auto encoder = make_video_encoder(kConfig, "vae/config.json", source);
  const auto backend = testing::quick_backend();
  Context ctx{*backend, DType::bf16};  // must not round: the class computes in f32
  EXPECT_EQ(decoder->spatial_factor(), kPatch);
  EXPECT_EQ(decoder->frames_out(7), 7);
  EXPECT_EQ(decoder->latent_frames(7), 7);
  const Tensor z = hash_tensor("z", {kComponents, 3, 2, 5}, 0.9);
  const Tensor video = decode_video(*decoder, ctx, z);
  for (int64_t i = 0; i < video.numel(); ++i) {
    ASSERT_LT(std::abs(video.as<float>()[i]), 1.0f) << "the test wants no clamping";
  }
  EXPECT_LE(testing::worst_error(encoder->encode(ctx, video), z), 1e-4);
}

// One pixel by hand: patch = mean + sum_k z_k scale_k basis_k in (c, y, x) order.
TEST(LinearAutoencoder, PixelsLieInPatchOrder) {
  testing::MemorySource source = make_source();
  const auto decoder = make_video_decoder(kConfig, "vae/config.json", source);
  const auto backend = testing::quick_backend();
  Context ctx{*backend, DType::f32};
  const Tensor z = hash_tensor("z", {kComponents, 2, 2, 3}, 0.9);
  const Tensor video = decode_video(*decoder, ctx, z);
  const int64_t f = 1, cell_y = 1, cell_x = 2, c = 2, y = 3, x = 1;
  const int64_t i = (c * kPatch + y) * kPatch + x;
  double value = source.tensors.at("mean").as<float>()[i];
  for (int64_t k = 0; k < kComponents; ++k) {
    value += static_cast<double>(z.as<float>()[((k * 2 + f) * 2 + cell_y) * 3 + cell_x]) *
             source.tensors.at("scale").as<float>()[k] *
             source.tensors.at("basis").as<float>()[k * kValues + i];
  }
  const int64_t row = cell_y * kPatch + y, column = cell_x * kPatch + x;
  EXPECT_NEAR(video.as<float>()[((c * 2 + f) * 8 + row) * 12 + column], value, 1e-5);
}

TEST(LinearAutoencoder, ClampsAndReportsProgress) {
  testing::MemorySource source = make_source();
  const auto decoder = make_video_decoder(kConfig, "vae/config.json", source);
  const auto backend = testing::quick_backend();
  Context ctx{*backend, DType::f32};
  DecodeOptions options;
  int64_t last = 0;
  options.progress = [&](int64_t done, int64_t total) {
    EXPECT_EQ(done, ++last);
    EXPECT_EQ(total, 2);
  };
  const Tensor video =
      decode_video(*decoder, ctx, hash_tensor("z", {kComponents, 2, 1, 1}, 100.0), options);
  float highest = 0.0f;
  for (int64_t i = 0; i < video.numel(); ++i) highest = std::max(highest, video.as<float>()[i]);
  EXPECT_EQ(highest, 1.0f);
  EXPECT_EQ(last, 2);
}

TEST(LinearAutoencoder, RejectsBadInput) {
  testing::MemorySource source = make_source();
  const auto message = [&](const char* config) {
    return error_of([&] { make_video_decoder(config, "vae/config.json", source); });
  };
  EXPECT_NE(message(R"({"_class_name": "AutoencoderKL"})").find("AutoencoderKL"),
            std::string::npos);
  EXPECT_NE(message(R"({"_class_name": 3})").find("_class_name"), std::string::npos);
  EXPECT_NE(message("nonsense").find("JSON"), std::string::npos);
  EXPECT_NE(message(R"({"_class_name": "LinearVideoAutoencoder", "patch_size": 100000})")
                .find("patch_size"),
            std::string::npos);
  EXPECT_NE(message(R"({"_class_name": "LinearVideoAutoencoder", "patch_size": 1})")
                .find("latent_channels"),
            std::string::npos);
  source.tensors.at("scale").as<float>()[3] = 0.0f;
  EXPECT_NE(message(kConfig).find("component 3"), std::string::npos);
  source.tensors.erase("basis");
  EXPECT_NE(message(kConfig).find("basis"), std::string::npos);
}

}  // namespace
}  // namespace lacuna
