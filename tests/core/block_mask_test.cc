// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/block_mask.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>
#include <utility>

#include "lacuna/core/error.h"

namespace lacuna {
namespace {

// A mask beside the plainest model of it.
struct Modelled {
  Modelled(int64_t heads, int32_t q, int32_t k, double keep, unsigned seed) : mask(heads, q, k) {
    std::mt19937 random(seed);
    for (int64_t h = 0; h < heads; ++h)
      for (int32_t i = 0; i < q; ++i)
        for (int32_t j = 0; j < k; ++j)
          if (random() / 4294967296.0 < keep) {
            mask.set(h, i, j);
            bits.insert({h, i, j});
          }
  }
  BlockMask mask;
  std::set<std::tuple<int64_t, int32_t, int32_t>> bits;
};

TEST(BlockLayout, UniformCoversEveryTokenOnce) {
  for (int64_t n : {0, 1, 63, 64, 65, 1000}) {
    for (int32_t block : {1, 64, 128}) {
      const BlockLayout l = BlockLayout::uniform(n, block);
      int64_t covered = 0;
      for (int32_t b = 0; b < l.num_blocks; ++b) {
        EXPECT_EQ(l.begin(0, b), covered);
        EXPECT_GT(l.size(3, b), 0);
        EXPECT_LE(l.size(3, b), block);
        covered = l.end(7, b);
      }
      EXPECT_EQ(covered, n) << n << " / " << block;
    }
  }
  EXPECT_THROW(BlockLayout::uniform(-1, 64), Error);
  EXPECT_THROW(BlockLayout::uniform(int64_t{1} << 31, 64), Error);
  EXPECT_THROW(BlockLayout::uniform(10, 0), Error);
}

TEST(BlockLayout, ExplicitOffsetsAreChecked) {
  const BlockLayout l = BlockLayout::explicit_offsets(10, 2, {0, 4, 4, 10, 0, 1, 9, 10});
  EXPECT_EQ(l.num_blocks, 3);
  EXPECT_EQ(l.size(0, 1), 0);
  EXPECT_EQ(l.size(1, 1), 8);
  EXPECT_EQ(l.end(1, 2), 10);
  EXPECT_THROW(BlockLayout::explicit_offsets(10, 2, {0, 4, 10, 0, 5}), Error);
  EXPECT_THROW(BlockLayout::explicit_offsets(10, 1, {0, 5, 4, 10}), Error);
  EXPECT_THROW(BlockLayout::explicit_offsets(10, 1, {1, 10}), Error);
  EXPECT_THROW(BlockLayout::explicit_offsets(10, 1, {0, 9}), Error);
  EXPECT_THROW(BlockLayout::explicit_offsets(10, 1, {0}), Error);
  EXPECT_THROW(BlockLayout::explicit_offsets(10, 1, {}), Error);
  EXPECT_THROW(BlockLayout::explicit_offsets(10, 0, {0, 10}), Error);
}

TEST(BlockMask, BehavesAsASetOfTriples) {
  for (int32_t k : {1, 63, 64, 65, 130}) {
    Modelled a(2, 3, k, 0.4, 1), b(2, 3, k, 0.4, 2);
    BlockMask both = a.mask, either = a.mask;
    both &= b.mask;
    either |= b.mask;
    for (int64_t h = 0; h < 2; ++h) {
      int64_t count = 0;
      for (int32_t i = 0; i < 3; ++i)
        for (int32_t j = 0; j < k; ++j) {
          const bool in_a = a.bits.contains({h, i, j}), in_b = b.bits.contains({h, i, j});
          ASSERT_EQ(a.mask.get(h, i, j), in_a);
          ASSERT_EQ(both.get(h, i, j), in_a && in_b);
          ASSERT_EQ(either.get(h, i, j), in_a || in_b);
          count += in_a;
        }
      EXPECT_EQ(a.mask.count(h), count);
    }
    BlockMask cleared = a.mask;
    for (const auto& [h, i, j] : a.bits) cleared.clear(h, i, j);
    EXPECT_EQ(cleared, BlockMask(2, 3, k));
    EXPECT_NE(cleared.hash(), a.mask.hash());
    EXPECT_EQ(BlockMask(a.mask).hash(), a.mask.hash());
  }
  EXPECT_THROW(BlockMask(1, 2, 3) |= BlockMask(1, 2, 300), Error);
  EXPECT_THROW(BlockMask(1, 2, 3) &= BlockMask(2, 2, 3), Error);
  EXPECT_NE(BlockMask(1, 2, 3).hash(), BlockMask(1, 3, 2).hash());
}

TEST(BlockMask, FillAndSinksKeepExactlyTheirBlocks) {
  BlockMask full(2, 3, 70);
  full.fill();
  EXPECT_EQ(full.count(1), 3 * 70);
  EXPECT_NO_THROW(full.validate());
  EXPECT_EQ(full.row(1, 2)[1] >> 6, 0u) << "bits past the last key block";
  BlockMask sinks(2, 3, 70);
  sinks.keep_k_blocks(-5, 2);
  sinks.keep_k_blocks(69, 1000);
  sinks.keep_q_blocks(2, 99);
  EXPECT_EQ(sinks.count(0), 2 * 3 + 70);
  EXPECT_TRUE(sinks.get(1, 0, 69));
  EXPECT_FALSE(sinks.get(1, 0, 2));
  sinks.keep_k_blocks(5, 5);
  EXPECT_EQ(sinks.count(0), 2 * 3 + 70);
}

TEST(BlockMask, CopyHeadMovesOneHeadOnly) {
  Modelled a(3, 2, 66, 0.5, 3), b(2, 2, 66, 0.5, 4);
  const BlockMask before = a.mask;
  a.mask.copy_head(1, b.mask, 0);
  for (int32_t i = 0; i < 2; ++i)
    for (int32_t j = 0; j < 66; ++j) {
      EXPECT_EQ(a.mask.get(0, i, j), before.get(0, i, j));
      EXPECT_EQ(a.mask.get(1, i, j), b.mask.get(0, i, j));
      EXPECT_EQ(a.mask.get(2, i, j), before.get(2, i, j));
    }
  EXPECT_THROW(a.mask.copy_head(0, BlockMask(1, 2, 65), 0), Error);
}

TEST(BlockMask, DensityCountsTokenPairs) {
  const BlockLayout q = BlockLayout::uniform(100, 64), k = BlockLayout::uniform(130, 64);
  BlockMask mask(1, 2, 3);
  mask.set(0, 0, 0);  // 64 x 64
  mask.set(0, 1, 2);  // 36 x 2
  EXPECT_DOUBLE_EQ(mask.density(0, q, k), (64.0 * 64 + 36 * 2) / (100.0 * 130));
  mask.fill();
  EXPECT_DOUBLE_EQ(mask.density(q, k), 1.0);
  const BlockLayout clusters = BlockLayout::explicit_offsets(10, 2, {0, 2, 10, 0, 9, 10});
  BlockMask pair(2, 2, 2);
  pair.set(0, 0, 0);
  pair.set(1, 0, 0);
  EXPECT_DOUBLE_EQ(pair.density(0, clusters, clusters), 0.04);
  EXPECT_DOUBLE_EQ(pair.density(1, clusters, clusters), 0.81);
  EXPECT_DOUBLE_EQ(pair.density(clusters, clusters), 0.425);
  EXPECT_THROW(pair.density(0, q, k), Error);
}

TEST(BlockMask, ValidateNamesTheBrokenRow) {
  BlockMask mask(2, 2, 65);
  mask.fill();
  for (int32_t j = 0; j < 65; ++j) mask.clear(1, 0, j);
  try {
    mask.validate();
    FAIL() << "an empty row passed";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("head 1 query block 0"));
  }
  mask.set(1, 0, 3);
  EXPECT_NO_THROW(mask.validate());
  mask.row(0, 1)[1] |= 2;  // key block 65 of 65
  EXPECT_THROW(mask.validate(), Error);
}

TEST(CompactBlocks, ListsTheKeptBlocksInVisitOrder) {
  for (int32_t k : {1, 5, 64, 100}) {
    const Modelled m(2, 7, k, 0.3, 9);
    const BlockIndex ascending = compact_blocks(m.mask, VisitOrder::ascending);
    const BlockIndex coarse = compact_blocks(m.mask, VisitOrder::coarse_to_fine);
    ASSERT_EQ(ascending.row_begin, coarse.row_begin);
    ASSERT_EQ(ascending.row_begin.size(), 15u);
    EXPECT_EQ(ascending.row_begin.back(), static_cast<int64_t>(m.bits.size()));
    for (int64_t row = 0; row < 14; ++row) {
      const auto begin = ascending.row_begin[row], end = ascending.row_begin[row + 1];
      std::vector<int32_t> listed(ascending.cols.begin() + begin, ascending.cols.begin() + end);
      EXPECT_TRUE(std::is_sorted(listed.begin(), listed.end()));
      for (int32_t kb : listed) EXPECT_TRUE(m.mask.get(row / 7, row % 7, kb));
      std::vector<int32_t> reordered(coarse.cols.begin() + begin, coarse.cols.begin() + end);
      const auto own = static_cast<int32_t>(row % 7 * k / 7);
      if (m.mask.get(row / 7, row % 7, own)) {
        EXPECT_EQ(reordered.front(), own) << "own block first";
      }
      std::sort(reordered.begin(), reordered.end());
      EXPECT_EQ(reordered, listed);
    }
  }
}

TEST(CompactBlocks, CoarseToFineSpreadsEarly) {
  BlockMask mask(1, 1, 64);
  mask.fill();
  const BlockIndex index = compact_blocks(mask, VisitOrder::coarse_to_fine);
  // After 2^n blocks no gap between visited neighbours exceeds 64 / 2^n.
  for (int n = 1; n <= 6; ++n) {
    std::vector<int32_t> seen(index.cols.begin(), index.cols.begin() + (1 << n));
    std::sort(seen.begin(), seen.end());
    for (size_t i = 1; i < seen.size(); ++i) EXPECT_LE(seen[i] - seen[i - 1], 64 >> n);
  }
}

}  // namespace
}  // namespace lacuna
