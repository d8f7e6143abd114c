// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/token_order.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdlib>

#include "lacuna/core/error.h"

namespace lacuna {
namespace {

TEST(TileOrder, AnyGridAndTileGiveAPermutationBoxByBox) {
  for (const VideoGrid& grid : {VideoGrid{1, 1, 1}, VideoGrid{3, 5, 7}, VideoGrid{4, 4, 4}}) {
    for (int64_t tile : {1, 2, 3, 8}) {
      const TokenOrder order = tile_order(grid, tile, tile, tile);
      ASSERT_EQ(order.seq_len, grid.tokens());
      EXPECT_NO_THROW(order.validate());
      // The box number never falls along the order.
      int64_t last = -1;
      for (int32_t token : order.order) {
        const int64_t w = token % grid.width, h = token / grid.width % grid.height,
                      f = token / grid.tokens_per_frame();
        const auto boxes = [tile](int64_t size) { return (size + tile - 1) / tile; };
        const int64_t box =
            (f / tile * boxes(grid.height) + h / tile) * boxes(grid.width) + w / tile;
        ASSERT_GE(box, last);
        last = box;
      }
    }
  }
  // Hand-made: 1 x 2 x 4 cut into 1 x 2 x 2.
  EXPECT_THAT(tile_order({1, 2, 4}, 1, 2, 2).order, testing::ElementsAre(0, 1, 4, 5, 2, 3, 6, 7));
  // Tiles of one token, and one tile for all, are raster order.
  EXPECT_EQ(tile_order({3, 5, 7}, 1, 1, 1).order, tile_order({3, 5, 7}, 9, 9, 9).order);
  EXPECT_THROW(tile_order({1, 1, 1}, 0, 1, 1), Error);
}

TEST(FrameMinorOrder, KeepsASiteOfAllFramesTogether) {
  EXPECT_THAT(frame_minor_order({3, 1, 2}).order, testing::ElementsAre(0, 2, 4, 1, 3, 5));
  const VideoGrid grid{4, 3, 5};
  const TokenOrder order = frame_minor_order(grid);
  EXPECT_NO_THROW(order.validate());
  for (int64_t p = 0; p < grid.tokens(); ++p) {
    EXPECT_EQ(order.order[p] % grid.tokens_per_frame(), p / grid.frames);
    EXPECT_EQ(order.order[p] / grid.tokens_per_frame(), p % grid.frames);
  }
}

// Grid distance (sum over the axes) between neighbours of the order.
std::vector<int64_t> steps_of(const TokenOrder& order, const VideoGrid& grid) {
  std::vector<int64_t> steps;
  for (size_t p = 1; p < order.order.size(); ++p) {
    const int64_t a = order.order[p - 1], b = order.order[p];
    const int64_t frame = grid.tokens_per_frame(), width = grid.width;
    steps.push_back(std::abs(a / frame - b / frame) +
                    std::abs(a % frame / width - b % frame / width) +
                    std::abs(a % width - b % width));
  }
  return steps;
}

TEST(HilbertOrder, WalksACubeInUnitSteps) {
  for (const int64_t side : {1, 2, 4, 8}) {
    const VideoGrid grid{side, side, side};
    const TokenOrder order = hilbert_order(grid);
    ASSERT_EQ(order.seq_len, grid.tokens());
    EXPECT_NO_THROW(order.validate());
    EXPECT_THAT(steps_of(order, grid), testing::Each(1)) << side;
    EXPECT_EQ(order.order.front(), 0);
  }
}

// Sum over the axes of the extent of each run of `block` tokens, mean over the runs.
double mean_extent(const TokenOrder& order, const VideoGrid& grid, size_t block) {
  double sum = 0.0;
  size_t runs = 0;
  for (size_t begin = 0; begin + block <= order.order.size(); begin += block, ++runs) {
    std::array<int64_t, 3> low{1 << 20, 1 << 20, 1 << 20}, high{};
    for (size_t p = begin; p < begin + block; ++p) {
      const int64_t t = order.order[p];
      const std::array<int64_t, 3> at{t / grid.tokens_per_frame(), t / grid.width % grid.height,
                                      t % grid.width};
      for (size_t axis = 0; axis < 3; ++axis) {
        low[axis] = std::min(low[axis], at[axis]);
        high[axis] = std::max(high[axis], at[axis]);
      }
    }
    for (size_t axis = 0; axis < 3; ++axis) sum += static_cast<double>(high[axis] - low[axis] + 1);
  }
  return sum / static_cast<double>(runs);
}

// 64 tokens are a 4x4x4 cube at best: extents of 12 in all. Raster order has 1 x 3 x 30 and more.
TEST(HilbertOrder, AnyGridGivesAPermutationWithCompactBlocks) {
  for (const VideoGrid& grid : {VideoGrid{5, 12, 30}, VideoGrid{13, 30, 52}, VideoGrid{1, 7, 9},
                                VideoGrid{3, 1, 1}, VideoGrid{9, 16, 16}}) {
    const TokenOrder order = hilbert_order(grid);
    ASSERT_EQ(order.seq_len, grid.tokens());
    EXPECT_NO_THROW(order.validate());
    if (grid.tokens() < 1000) continue;
    EXPECT_LT(mean_extent(order, grid, 64), 0.75 * mean_extent(frame_minor_order(grid), grid, 64));
    EXPECT_LT(mean_extent(order, grid, 64),
              0.75 * mean_extent(tile_order(grid, 1, 1, 1), grid, 64));
  }
}

TEST(TokenOrder, ValidateRefusesWhatIsNoPermutation) {
  const auto with = [](std::vector<int32_t> order, int64_t heads = 1) {
    return TokenOrder{3, heads, std::move(order)};
  };
  EXPECT_NO_THROW(with({2, 0, 1}).validate());
  EXPECT_NO_THROW(with({2, 0, 1, 0, 1, 2}, 2).validate());
  EXPECT_THROW(with({2, 0, 2}).validate(), Error);
  EXPECT_THROW(with({3, 0, 1}).validate(), Error);
  EXPECT_THROW(with({-1, 0, 1}).validate(), Error);
  EXPECT_THROW(with({0, 1}).validate(), Error);
  EXPECT_THROW(with({2, 0, 1, 0, 1, 1}, 2).validate(), Error);
  const TokenOrder shared = with({2, 0, 1});
  EXPECT_EQ(shared.head(5), shared.head(0));
  const TokenOrder own = with({2, 0, 1, 0, 1, 2}, 2);
  EXPECT_EQ(own.head(1), own.head(0) + 3);
}

}  // namespace
}  // namespace lacuna
