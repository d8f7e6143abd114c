// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/token_order.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

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
