// SPDX-License-Identifier: Apache-2.0
#include "lacuna/engine/mask_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/methods/fixtures.h"

namespace lacuna::test {
namespace {

using testing::HasSubstr;

// `heads` rows over 12 tokens in 3 blocks; every row keeps block `kept` only.
Selection column(int64_t heads, int32_t kept) {
  Selection s;
  s.q_layout = s.k_layout = BlockLayout::uniform(12, 4);
  s.mask = BlockMask(heads, 3, 3);
  s.mask.keep_k_blocks(kept, kept + 1);
  return s;
}

const std::vector<int32_t> kAll = {0, 1, 2};

TEST(MaskCache, MergesRowsOfASubset) {
  MaskCache cache;
  EXPECT_TRUE(cache.empty());
  cache.merge(column(3, 0), kAll, 3, "m");
  const uint64_t before = cache.hash();
  Selection fresh = column(2, 1);
  fresh.mask.set(1, 0, 2);
  cache.merge(fresh, std::vector<int32_t>{0, 2}, 3, "m");
  EXPECT_EQ(picture(cache.selection().mask, 0), Picture(3, ".#."));
  EXPECT_EQ(picture(cache.selection().mask, 1), Picture(3, "#.."));
  EXPECT_EQ(picture(cache.selection().mask, 2), (Picture{".##", ".#.", ".#."}));
  EXPECT_NE(cache.hash(), before);
  EXPECT_DOUBLE_EQ(cache.density(), (1.0 / 3 + 1.0 / 3 + 4.0 / 9) / 3);
}

TEST(MaskCache, MergesOffsetsAndOrders) {
  MaskCache cache;
  Selection all = column(3, 0);
  all.k_layout = BlockLayout::explicit_offsets(12, 3, {0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12});
  cache.merge(all, kAll, 3, "m");
  Selection fresh = column(1, 0);
  fresh.k_layout = BlockLayout::explicit_offsets(12, 1, {0, 10, 11, 12});
  fresh.k_order = TokenOrder{12, 1, {11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0}};
  cache.merge(fresh, std::vector<int32_t>{1}, 3, "m");
  const Selection& s = cache.selection();
  EXPECT_EQ(s.k_layout.end(1, 0), 10);
  EXPECT_EQ(s.k_layout.end(2, 0), 4);
  ASSERT_EQ(s.k_order.num_heads, 3) << "heads differ now";
  EXPECT_EQ(s.k_order.head(0)[0], 0);
  EXPECT_EQ(s.k_order.head(1)[0], 11);
  EXPECT_TRUE(s.q_order.empty());
  EXPECT_DOUBLE_EQ(cache.density(), (4.0 + 10.0 + 4.0) / 36.0);
}

TEST(MaskCache, SharedOrderStaysShared) {
  MaskCache cache;
  Selection all = column(3, 0);
  all.q_order = TokenOrder{12, 1, {1, 0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}};
  cache.merge(all, kAll, 3, "m");
  Selection fresh = column(1, 1);
  fresh.q_order = all.q_order;
  cache.merge(fresh, std::vector<int32_t>{1}, 3, "m");
  EXPECT_EQ(cache.selection().q_order.num_heads, 1);
}

TEST(MaskCache, RejectsWhatDoesNotFitAndStaysAsItWas) {
  MaskCache cache;
  EXPECT_THAT(error_of([&] { cache.merge(column(1, 0), std::vector<int32_t>{1}, 3, "m"); }),
              HasSubstr("m: selected 1 of 3 heads, expected all at first"));
  cache.merge(column(3, 0), kAll, 3, "m");
  const uint64_t before = cache.hash();
  Selection other = column(1, 0);
  other.k_layout = BlockLayout::uniform(12, 6);
  other.mask = BlockMask(1, 3, 2);
  EXPECT_THAT(error_of([&] { cache.merge(other, std::vector<int32_t>{1}, 3, "m"); }),
              HasSubstr("m: 3x2 blocks for some heads, expected 3x3"));
  Selection dense = column(1, 0);
  dense.mask = {};
  EXPECT_THAT(error_of([&] { cache.merge(dense, std::vector<int32_t>{1}, 3, "m"); }),
              HasSubstr("no mask for some heads"));
  EXPECT_EQ(cache.hash(), before);
}

// 12 tokens in 3 blocks, the last 2 of them text: block 2 stays, as a row and as a column.
TEST(MaskCache, DropTakesBitsOutButNotText) {
  for (const bool dense : {false, true}) {
    MaskCache cache;
    Selection all = column(1, 0);
    all.mask.fill();
    if (dense) all.mask = {};
    cache.merge(all, std::vector<int32_t>{0}, 1, "m");
    const uint64_t before = cache.hash();
    const std::vector<uint64_t> bits = {0b110, 0b000, 0b011};
    cache.drop(bits.data(), 10);
    EXPECT_EQ(picture(cache.selection().mask), (Picture{"#.#", "###", "###"}));
    EXPECT_DOUBLE_EQ(cache.density(), 8.0 / 9.0);
    EXPECT_NE(cache.hash(), before);
  }
}

TEST(MaskCache, DenseHasNoHash) {
  MaskCache cache;
  Selection dense = column(3, 0);
  dense.mask = {};
  cache.merge(dense, kAll, 3, "m");
  EXPECT_TRUE(cache.dense());
  EXPECT_EQ(cache.hash(), 0u);
  EXPECT_EQ(cache.density(), 1.0);
}

}  // namespace
}  // namespace lacuna::test
