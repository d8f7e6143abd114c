// SPDX-License-Identifier: Apache-2.0
#include "lacuna/report/head_shape.h"

#include <gtest/gtest.h>

#include <functional>

#include "lacuna/methods/selection.h"

namespace lacuna {
namespace {

constexpr VideoGrid kGrid{8, 4, 8};  // 32 tokens a frame, 256 in all: a cell is a token
constexpr int64_t kTokens = 256;

// One head in blocks of one token; q and k are raster tokens.
Selection tokens_where(const std::function<bool(int64_t q, int64_t k)>& kept) {
  Selection s;
  s.q_layout = s.k_layout = BlockLayout::uniform(kTokens, 1);
  s.mask = BlockMask(1, kTokens, kTokens);
  for (int32_t q = 0; q < kTokens; ++q)
    for (int32_t k = 0; k < kTokens; ++k)
      if (q == k || kept(q, k)) s.mask.set(0, q, k);
  return s;
}

std::string kind_of(const Selection& s) {
  return head_shape(cell_mask(s, 0), kGrid).kind;
}

TEST(HeadShape, KindsOfPlainMasks) {
  EXPECT_EQ(kind_of(tokens_where([](int64_t, int64_t) { return true; })), "dense");
  EXPECT_EQ(
      kind_of(Selection{
          BlockLayout::uniform(kTokens, 64), BlockLayout::uniform(kTokens, 64), {}, {}, {}, {}}),
      "dense");
  EXPECT_EQ(kind_of(tokens_where([](int64_t q, int64_t k) { return std::abs(q - k) < 12; })),
            "local");
  EXPECT_EQ(kind_of(tokens_where([](int64_t q, int64_t k) { return q % 32 == k % 32; })),
            "temporal");
  EXPECT_EQ(kind_of(tokens_where([](int64_t, int64_t k) { return k < 32; })), "sink");
  EXPECT_EQ(kind_of(tokens_where([](int64_t q, int64_t k) { return (q * 7 + k * 13) % 5 == 0; })),
            "global");
  EXPECT_EQ(kind_of(tokens_where(
                [](int64_t q, int64_t k) { return q % 32 == k % 32 || std::abs(q - k) < 2; })),
            "mixed");
}

TEST(HeadShape, SharesAreThoseOfThePairs) {
  const HeadShape s = head_shape(
      cell_mask(tokens_where([](int64_t q, int64_t k) { return q / 32 == 4 && k < 32; }), 0),
      kGrid);
  // 256 diagonal pairs, 32 of them in the first frame; 32 x 32 sinks.
  EXPECT_NEAR(s.share[static_cast<size_t>(Region::sink)], (1024.0 + 32) / (1024 + 256), 1e-9);
  EXPECT_NEAR(s.share[static_cast<size_t>(Region::band)], 224.0 / (1024 + 256), 1e-9);
  EXPECT_NEAR(s.density, (1024.0 + 256) / (256.0 * 256), 1e-9);
  EXPECT_NEAR(s.lift[static_cast<size_t>(Region::sink)], (1056.0 / 1280) / (32.0 / 256), 1e-6);
}

// A band in frame-minor order is stripes in raster order.
TEST(HeadShape, OrdersAreUndone) {
  Selection s;
  s.q_order = s.k_order = frame_minor_order(kGrid);
  s.q_layout = s.k_layout = BlockLayout::uniform(kTokens, 8);  // one place, all frames
  s.mask = BlockMask(1, 32, 32);
  for (int32_t b = 0; b < 32; ++b) s.mask.set(0, b, b);
  EXPECT_EQ(
      cell_mask(s, 0).share,
      cell_mask(tokens_where([](int64_t q, int64_t k) { return q % 32 == k % 32; }), 0).share);
  EXPECT_EQ(order_name(s.k_order, 0, kGrid), "frame-minor");
  EXPECT_EQ(order_name(hilbert_order(kGrid), 0, kGrid), "hilbert");
  EXPECT_EQ(order_name(tile_order(kGrid, 2, 2, 2), 0, kGrid), "permuted");
  EXPECT_EQ(order_name({}, 0, kGrid), "raster");
}

TEST(CellMask, ShrinksByAveragingAndCompares) {
  const CellMask half = cell_mask(tokens_where([](int64_t, int64_t k) { return k < 128; }), 0);
  const CellMask none = cell_mask(tokens_where([](int64_t, int64_t) { return false; }), 0);
  EXPECT_EQ(half.cells, 256);
  const CellMask small = half.shrunk(2);
  EXPECT_EQ(small.cells, 2);
  EXPECT_EQ(small.share, (std::vector<float>{1.0f, 0.0f, 1.0f, 1.0f / 128}));
  EXPECT_DOUBLE_EQ(half.jaccard(half), 1.0);
  EXPECT_DOUBLE_EQ(half.jaccard(none), 256.0 / (256 * 128 + 128));
}

TEST(CellMask, LongSequencesHaveLargerCells) {
  Selection s;
  s.q_layout = s.k_layout = BlockLayout::uniform(1000, 64);
  s.mask = BlockMask(1, 16, 16);
  s.mask.keep_k_blocks(0, 1);
  const CellMask cells = cell_mask(s, 0);
  EXPECT_EQ(cells.cell_tokens, 4);
  EXPECT_EQ(cells.cells, 250);
  EXPECT_EQ(cells.share[15], 1.0f);
  EXPECT_EQ(cells.share[16], 0.0f);
}

}  // namespace
}  // namespace lacuna
