// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lacuna/methods/selection.h"
#include "tests/methods/fixtures.h"

namespace lacuna::test {
namespace {

Selection three_heads(int64_t seq_len) {
  Selection all;
  all.q_layout = all.k_layout = BlockLayout::uniform(seq_len, 4);
  const int32_t blocks = all.q_layout.num_blocks;
  all.mask = BlockMask(3, blocks, blocks);
  for (int64_t h = 0; h < 3; ++h)
    for (int32_t qb = 0; qb < blocks; ++qb) all.mask.set(h, qb, static_cast<int32_t>(h));
  return all;
}

TEST(Fixed, ReturnsTheAskedHeads) {
  Shape shape{{1, 2, 6}};
  shape.num_heads = 3;
  const Selection all = three_heads(12);
  const std::unique_ptr<Backend> backend = make_backend("ref");
  const Selection s =
      select(find_method("fixed"), Params(), make_input(shape), *backend, {0, 2}, &all);
  EXPECT_EQ(picture(s.mask, 0), Picture(3, "#.."));
  EXPECT_EQ(picture(s.mask, 1), Picture(3, "..#"));
}

TEST(Fixed, AddsText) {
  Shape shape{{1, 2, 5}, 2};
  shape.num_heads = 3;
  const Selection all = three_heads(12);
  const std::unique_ptr<Backend> backend = make_backend("ref");
  const Selection s =
      select(find_method("fixed"), Params(), make_input(shape), *backend, {0}, &all);
  EXPECT_EQ(picture(s.mask), (Picture{"#.#", "#.#", "###"}));
}

TEST(Fixed, RejectsMissingAndMismatchedMasks) {
  Shape shape{{1, 2, 6}};
  shape.num_heads = 3;
  const Input in = make_input(shape);
  const std::unique_ptr<Backend> backend = make_backend("ref");
  const auto run = [&](const Selection* masks) {
    return error_of([&] { select(find_method("fixed"), Params(), in, *backend, {0}, masks); });
  };
  EXPECT_THAT(run(nullptr), testing::HasSubstr("no mask given"));
  const Selection longer = three_heads(16);
  EXPECT_THAT(run(&longer), testing::HasSubstr("over 16 tokens, expected blocks over 12"));
  Selection two = three_heads(12);
  two.mask = BlockMask(2, 3, 3);
  EXPECT_THAT(run(&two), testing::HasSubstr("mask of 2 heads"));
  Selection empty_row = three_heads(12);
  empty_row.mask.clear(1, 2, 1);
  EXPECT_THAT(run(&empty_row), testing::HasSubstr("head 1 query block 2 keeps nothing"));
}

}  // namespace
}  // namespace lacuna::test
