// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/methods/fixtures.h"

namespace lacuna::test {
namespace {

Params window_params(double tile_frames, double tile_height, double tile_width, double frames,
                     double height, double width) {
  return params_of(find_method("window"), {{"tile_frames", tile_frames},
                                           {"tile_height", tile_height},
                                           {"tile_width", tile_width},
                                           {"window_frames", frames},
                                           {"window_height", height},
                                           {"window_width", width}});
}

// Five tiles in a row, window 3: border tiles are clamped inwards and see three tiles too.
TEST(Window, ClampsTheCentreAtTheBorder) {
  const Selection s = select_static("window", window_params(1, 1, 2, 1, 1, 3), {{1, 1, 10}});
  EXPECT_EQ(s.q_layout.block, 2);
  EXPECT_TRUE(s.q_order.empty()) << "tiles of one row are raster order already";
  EXPECT_EQ(picture(s.mask), (Picture{"###..", "###..", ".###.", "..###", "..###"}));
}

TEST(Window, EvenWindowActsAsOneMore) {
  const Selection even = select_static("window", window_params(1, 1, 2, 1, 1, 2), {{1, 1, 10}});
  const Selection odd = select_static("window", window_params(1, 1, 2, 1, 1, 3), {{1, 1, 10}});
  EXPECT_EQ(even.mask, odd.mask);
}

// 2 x 1 x 3 tiles, numbered frame-major 0..5; window 1 x 1 x 3 keeps the tile's own frame pair.
TEST(Window, IsThreeDimensional) {
  const Selection s = select_static("window", window_params(2, 2, 1, 1, 1, 3), {{4, 2, 3}});
  EXPECT_EQ(picture(s.mask), (Picture{"###...", "###...", "###...", "...###", "...###", "...###"}));
}

// 3 x 1 x 5 tokens in 2 x 1 x 2 tiles: 2 x 1 x 3 tiles of 4 4 2 | 2 2 1 tokens.
TEST(Window, RaggedGridHasSmallBorderTiles) {
  const Selection s = select_static("window", window_params(2, 1, 2, 1, 1, 1), {{3, 1, 5}}, {0});
  EXPECT_EQ(s.q_layout.offsets, (std::vector<int32_t>{0, 4, 8, 10, 12, 14, 15}));
  EXPECT_EQ(s.q_order.order,
            (std::vector<int32_t>{0, 1, 5, 6, 2, 3, 7, 8, 4, 9, 10, 11, 12, 13, 14}));
  EXPECT_EQ(picture(s.mask), (Picture{"#.....", ".#....", "..#...", "...#..", "....#.", ".....#"}));
}

// The same tiles with 6 text tokens: blocks of 4 and 2 after the tiles, kept for all, seeing all.
TEST(Window, TextFollowsTheTiles) {
  const Selection s = select_static("window", window_params(2, 1, 2, 1, 1, 1), {{3, 1, 5}, 6}, {0});
  EXPECT_EQ(s.q_layout.offsets, (std::vector<int32_t>{0, 4, 8, 10, 12, 14, 15, 19, 21}));
  EXPECT_EQ(picture(s.mask), (Picture{"#.....##", ".#....##", "..#...##", "...#..##", "....#.##",
                                      ".....###", "########", "########"}));
  EXPECT_EQ(s.k_order.order[15], 15);
  EXPECT_EQ(s.k_order.order[20], 20);
}

TEST(Window, WindowsDifferPerHeadButTilesMayNot) {
  Params params = window_params(1, 1, 2, 1, 1, 1);
  params.set_per_head("window_width", {1, 5, 1});
  Shape shape{{1, 1, 10}};
  shape.num_heads = 3;
  const Selection s = select_static("window", params, shape, {1, 2});
  EXPECT_EQ(s.mask.count(0), 25);
  EXPECT_EQ(s.mask.count(1), 5);
  params.set_per_head("tile_width", {2, 3, 2});
  EXPECT_THAT(error_of([&] { find_method("window").check(params); }),
              testing::HasSubstr("tile_width per head"));
}

// Every clamped row keeps its own tile and as many tiles as any other, whatever the window.
TEST(Window, OwnTileAndEqualCountsForEveryWindow) {
  for (int window = 1; window <= 9; ++window) {
    const Selection s =
        select_static("window", window_params(1, 1, 1, 1, window, window), {{1, 5, 7}}, {0});
    const int64_t rows = std::min(5, window / 2 * 2 + 1), columns = std::min(7, window / 2 * 2 + 1);
    EXPECT_EQ(s.mask.count(0), 35 * rows * columns) << "window " << window;
    for (int32_t b = 0; b < 35; ++b) EXPECT_TRUE(s.mask.get(0, b, b)) << window << " " << b;
  }
}

}  // namespace
}  // namespace lacuna::test
