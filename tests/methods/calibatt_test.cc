// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lacuna/methods/anchors.h"
#include "lacuna/methods/selection.h"
#include "tests/methods/fixtures.h"

namespace lacuna::test {
namespace {

Selection diagonal_masks(const Shape& shape, int32_t block) {
  Selection all;
  all.q_layout = all.k_layout = BlockLayout::uniform(shape.seq_len(), block);
  const int32_t blocks = all.q_layout.num_blocks;
  all.mask = BlockMask(shape.num_heads, blocks, blocks);
  for (int64_t h = 0; h < shape.num_heads; ++h)
    for (int32_t b = 0; b < blocks; ++b) all.mask.set(h, b, b);
  return all;
}

TEST(Anchors, AreEquallySpaced) {
  EXPECT_EQ(anchor_rows(30, 5), (std::vector<int32_t>{3, 9, 15, 21, 27}));
  EXPECT_EQ(anchor_rows(4, 2), (std::vector<int32_t>{1, 3}));
  EXPECT_EQ(anchor_rows(2, 5), (std::vector<int32_t>{0, 1}));
  EXPECT_EQ(nearest_anchors(6, 2), (std::vector<int32_t>{1, 1, 1, 4, 4, 4}));
  EXPECT_EQ(nearest_anchors(4, 2), (std::vector<int32_t>{1, 1, 1, 3}));  // row 2: the upper one
}

// 2 frames of 4 rows x 2, blocks of 4 tokens. Rows 1 and 3 are computed: tokens 2 3 6 7 10 11
// 14 15.
TEST(CalibAtt, RepetitiveHeadByHand) {
  Shape shape{{2, 4, 2}};
  const Selection masks = diagonal_masks(shape, 4);
  const std::unique_ptr<Backend> backend = make_backend("ref");
  Params params(find_method("calibatt").specs());
  params.set_per_head("anchors", {0, 2});
  const Selection s =
      select(find_method("calibatt"), params, make_input(shape), *backend, {}, &masks);
  EXPECT_EQ(picture(s.mask, 0), (Picture{"#...", ".#..", "..#.", "...#"}));
  EXPECT_EQ(picture(s.mask, 1), (Picture{"####", "####", "....", "...."}));
  const std::vector<int32_t> order(s.q_order.head(1), s.q_order.head(1) + 16);
  EXPECT_EQ(order, (std::vector<int32_t>{2, 3, 6, 7, 10, 11, 14, 15, 0, 1, 4, 5, 8, 9, 12, 13}));
  const std::vector<int32_t> source(s.row_source.head(1), s.row_source.head(1) + 16);
  EXPECT_EQ(source, (std::vector<int32_t>{2, 3, 2, 3, 2, 3, 6, 7, 10, 11, 10, 11, 10, 11, 14, 15}));
  for (int32_t t = 0; t < 16; ++t) {
    EXPECT_EQ(s.q_order.head(0)[t], t);
    EXPECT_EQ(s.row_source.head(0)[t], t);
  }
  EXPECT_EQ(error_of([&] { check_selection(s, "calibatt", 2, 16, 0); }), "");
}

TEST(CalibAtt, KeepsTheInvariantsBesideText) {
  for (const Shape& shape : {Shape{{3, 8, 9}, 21, 2}, Shape{{5, 6, 7}, 0, 2}}) {
    const Selection masks = diagonal_masks(shape, 32);
    const std::unique_ptr<Backend> backend = make_backend("ref");
    for (double anchors : {1.0, 3.0, 100.0}) {
      const Params params = params_of(find_method("calibatt"), {{"anchors", anchors}});
      Selection with_text = masks;
      const Selection s =
          select(find_method("calibatt"), params, make_input(shape), *backend, {}, &with_text);
      EXPECT_EQ(error_of([&] {
                  check_selection(s, "calibatt", 2, shape.grid.tokens(), shape.text_tokens);
                }),
                "");
    }
  }
}

TEST(Selection, RefusesBadRowSources) {
  const Shape shape{{1, 2, 4}, 0, 1};
  Selection s = diagonal_masks(shape, 4);
  s.row_source = {8, 1, {0, 1, 2, 3, 0, 1, 2, 3}};
  EXPECT_EQ(error_of([&] { check_selection(s, "m", 1, 8, 0); }), "");
  s.mask.clear(0, 1, 1);  // only copies: may keep nothing
  EXPECT_EQ(error_of([&] { check_selection(s, "m", 1, 8, 0); }), "");
  s.row_source.order[7] = 7;  // needs its row
  EXPECT_THAT(error_of([&] { check_selection(s, "m", 1, 8, 0); }), testing::HasSubstr("nothing"));
  s.row_source.order[7] = 6;  // a copy of a copy
  EXPECT_THAT(error_of([&] { check_selection(s, "m", 1, 8, 0); }),
              testing::HasSubstr("keeps its own"));
  s.row_source.order[7] = 8;
  EXPECT_THAT(error_of([&] { check_selection(s, "m", 1, 8, 0); }),
              testing::HasSubstr("takes the row of 8"));
  s.row_source.order[7] = 3;
  EXPECT_THAT(error_of([&] { check_selection(s, "m", 1, 7, 1); }),
              testing::HasSubstr("token 7 takes"));  // text
}

}  // namespace
}  // namespace lacuna::test
