// SPDX-License-Identifier: Apache-2.0
// Patch order and rotary tables.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "lacuna/core/error.h"
#include "lacuna/models/patch.h"
#include "lacuna/models/rope.h"
#include "lacuna/models/wan/wan_config.h"

namespace lacuna {
namespace {

Tensor counted(std::initializer_list<int64_t> shape) {
  Tensor tensor(DType::f32, shape);
  std::iota(tensor.as<float>(), tensor.as<float>() + tensor.numel(), 0.0f);
  return tensor;
}

TEST(WanPatch, OrderOfInputsAndOutputs) {
  // 2 channels, 1 frame, 2 x 4: two tokens side by side.
  const Tensor latent = counted({2, 1, 2, 4});
  const Tensor rows(DType::f32, {2, 8});
  patchify(latent, {1, 2, 2}, rows);
  const float inputs[] = {0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15};
  for (int i = 0; i < 16; ++i) EXPECT_EQ(rows.as<float>()[i], inputs[i]) << i;
  const Tensor outputs = counted({2, 8});  // (kh, kw, c) with the channel fastest
  const Tensor back(DType::f32, {2, 1, 2, 4});
  unpatchify(outputs, {1, 2, 2}, PatchOrder::channel_fastest, back);
  const float expected[] = {0, 2, 8, 10, 4, 6, 12, 14, 1, 3, 9, 11, 5, 7, 13, 15};
  for (int i = 0; i < 16; ++i) EXPECT_EQ(back.as<float>()[i], expected[i]) << i;
}

TEST(WanPatch, ReorderedRowsRoundTripForAnyPatch) {
  for (const PatchSize& patch : {PatchSize{1, 2, 2}, PatchSize{2, 1, 1}, PatchSize{2, 2, 3},
                                 PatchSize{1, 1, 1}, PatchSize{4, 6, 6}}) {
    const int64_t channels = 5;
    const Tensor latent = counted({channels, 4, 6, 6});
    const int64_t volume = patch.volume();
    const int64_t tokens = 4 * 6 * 6 / volume;
    const Tensor rows(DType::f32, {tokens, channels * volume});
    patchify(latent, patch, rows);
    // (c, k) -> (k, c) is what lies between the two orders.
    const Tensor swapped(DType::f32, {tokens, volume * channels});
    for (int64_t n = 0; n < tokens; ++n) {
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t k = 0; k < volume; ++k) {
          swapped.as<float>()[(n * volume + k) * channels + c] =
              rows.as<float>()[(n * channels + c) * volume + k];
        }
      }
    }
    const Tensor back(DType::f32, {channels, 4, 6, 6});
    for (const PatchOrder order : {PatchOrder::channel_fastest, PatchOrder::channel_slowest}) {
      unpatchify(order == PatchOrder::channel_fastest ? swapped : rows, patch, order, back);
      for (int64_t i = 0; i < latent.numel(); ++i) {
        ASSERT_EQ(back.as<float>()[i], latent.as<float>()[i])
            << "patch " << patch.t << patch.h << patch.w << " element " << i;
      }
    }
  }
}

TEST(WanPatch, WrongShapesAreErrors) {
  const Tensor latent = counted({2, 1, 2, 4});
  const Tensor rows(DType::f32, {2, 7});
  EXPECT_THROW(patchify(latent, {1, 2, 2}, rows), Error);
  EXPECT_THROW(patchify(latent, {2, 2, 2}, rows), Error);
  EXPECT_THROW(unpatchify(latent, {1, 2, 2}, PatchOrder::channel_slowest, latent), Error);
}

RopeChannels split(int64_t head_dim) {
  WanConfig config;
  config.head_dim = head_dim;
  return config.rope_channels();
}

TEST(WanRope, SplitsTheHeadAsPublished) {
  const RopeTables wide = AxisRope(split(128), 16, 10000.0).tables({2, 3, 4});
  EXPECT_EQ(wide.pairs_frames, 22);
  EXPECT_EQ(wide.pairs_height, 21);
  EXPECT_EQ(wide.pairs_width, 21);
  EXPECT_EQ(wide.frames, 2);
  EXPECT_EQ(wide.height, 3);
  EXPECT_EQ(wide.width, 4);
  // The tables belong to an object that is gone; only sizes are read above.
  for (const int64_t head_dim : {8, 16, 32, 64, 96, 256}) {
    const AxisRope rope(split(head_dim), 4, 10000.0);
    const RopeTables tables = rope.tables({1, 1, 1});
    EXPECT_EQ(2 * (tables.pairs_frames + tables.pairs_height + tables.pairs_width), head_dim);
  }
}

TEST(WanRope, AnglesAndPrefixProperty) {
  const AxisRope rope(split(64), 1024, 10000.0);
  const RopeTables tables = rope.tables({5, 1000, 7});
  ASSERT_EQ(tables.pairs_height, 10);
  for (const int64_t position : {0, 1, 999}) {
    for (int k = 0; k < 10; ++k) {
      const double angle = static_cast<double>(position) * std::pow(10000.0, -2.0 * k / 20.0);
      EXPECT_EQ(tables.cos_height[position * 10 + k], static_cast<float>(std::cos(angle)));
      EXPECT_EQ(tables.sin_height[position * 10 + k], static_cast<float>(std::sin(angle)));
    }
  }
  EXPECT_EQ(tables.cos_frames, rope.tables({1, 1, 1}).cos_frames);
  EXPECT_THROW(rope.tables({1, 1025, 1}), Error);
  EXPECT_THROW(AxisRope({5, 2, 2}, 4, 10000.0), Error);
  EXPECT_THROW(AxisRope({6, 0, 0}, 4, 10000.0), Error);
}

}  // namespace
}  // namespace lacuna
