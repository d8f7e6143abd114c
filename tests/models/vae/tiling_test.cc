// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/vae/tiling.h"

#include <gtest/gtest.h>

#include "tests/models/vae/support.h"

namespace lacuna {
namespace {

// 50 pixels, so 13 cells of the map at a quarter of the resolution, of which 12 are
// left after the up-convolution that leads there.
TEST(VaeTiling, HaloIsThePublishedReceptiveRadius) {
  const VaeConfig config = vae_preset("wan2.1");
  const auto spans = required_spans(config, 1000, {4000, 4256});
  ASSERT_EQ(spans.size(), 4u);
  EXPECT_EQ(4000 - spans[3].begin, 7);  // six residual convolutions and conv_out
  EXPECT_EQ(spans[3].end - 4256, 7);
  EXPECT_EQ(2000 - spans[2].begin, 10);
  EXPECT_EQ(1000 - spans[1].begin, 12);
  EXPECT_EQ(500 - spans[0].begin, 7);
}

TEST(VaeTiling, HaloStopsAtTheFrame) {
  const VaeConfig config = vae_preset("wan2.1");
  const auto spans = required_spans(config, 8, {0, 64});
  for (size_t level = 0; level < spans.size(); ++level) {
    EXPECT_EQ(spans[level].begin, 0);
    EXPECT_EQ(spans[level].end, 8 << level);
  }
}

TEST(VaeTiling, ExactTilesCoverTheFrameOnce) {
  const VaeConfig config = vae_preset("wan2.2");
  const int64_t h = 30, w = 52, scale = 8;
  const auto tiles = plan_exact_tiles(config, h, w, {TileMode::exact, 256, 256, 0, 0});
  EXPECT_EQ(tiles.size(), 2u * 4u);
  std::vector<int> seen(static_cast<size_t>(h * scale * w * scale));
  for (const ExactTile& tile : tiles) {
    EXPECT_LE(tile.inner.height * config.patch_size, 256);
    EXPECT_LE(tile.inner.width * config.patch_size, 256);
    for (int64_t y = 0; y < tile.inner.height; ++y) {
      for (int64_t x = 0; x < tile.inner.width; ++x) {
        ++seen[static_cast<size_t>((tile.top + y) * w * scale + tile.left + x)];
      }
    }
    Region map = tile.trunk;
    for (const Region& crop : tile.crops) {  // every crop lies inside the doubled map
      EXPECT_GE(crop.top, 0);
      EXPECT_GE(crop.left, 0);
      EXPECT_LE(crop.top + crop.height, 2 * map.height);
      EXPECT_LE(crop.left + crop.width, 2 * map.width);
      map = crop;
    }
    EXPECT_LE(tile.inner.top + tile.inner.height, map.height);
    EXPECT_LE(tile.inner.left + tile.inner.width, map.width);
  }
  for (const int n : seen) ASSERT_EQ(n, 1);
}

TEST(VaeTiling, BlendWeightsRunFromTheNeighbourToTheTile) {
  const Tensor above = Tensor::zeros(DType::f32, {1, 3, 2, 1});
  Tensor tile(DType::f32, {1, 4, 2, 1});
  std::fill_n(tile.as<float>(), 8, 1.0f);
  blend_rows(above, tile, 2);
  const std::vector<float> rows(tile.as<float>(), tile.as<float>() + 8);
  EXPECT_EQ(rows, (std::vector<float>{0, 0, 0.5f, 0.5f, 1, 1, 1, 1}));
  blend_columns(Tensor::zeros(DType::f32, {1, 4, 1, 1}), tile, 8);  // cut to one column
  EXPECT_EQ(tile.as<float>()[4], 0.0f);
  EXPECT_EQ(tile.as<float>()[5], 1.0f);
}

TEST(VaeTiling, FramesAreBlendedFromTheLastOnesBefore) {
  Tensor before(DType::f32, {3, 1, 1, 2});
  for (int i = 0; i < 6; ++i) before.as<float>()[i] = static_cast<float>(i / 2);
  Tensor tile(DType::f32, {3, 1, 1, 2});
  std::fill_n(tile.as<float>(), 6, 10.0f);
  blend_frames(before, tile, 2);
  const std::vector<float> frames(tile.as<float>(), tile.as<float>() + 6);
  EXPECT_EQ(frames, (std::vector<float>{1, 1, 6, 6, 10, 10}));
}

TEST(VaeTiling, BlendPlanIsUpstreams) {
  const BlendPlan plan = plan_blend(16, 2, {TileMode::blend, 256, 256, 192, 192});
  EXPECT_EQ(plan.tile_height, 16);
  EXPECT_EQ(plan.stride_width, 12);
  EXPECT_EQ(plan.out_stride_height, 96);
  EXPECT_EQ(plan.blend_width, 32);
  EXPECT_EQ(plan.rows(16), 2);
  EXPECT_EQ(plan.columns(25), 3);
  EXPECT_EQ(plan.held_cells(16, 25), (16 + 4) * (16 + 13 + 1));
}

}  // namespace
}  // namespace lacuna
