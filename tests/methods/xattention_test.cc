// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/methods/fixtures.h"

namespace lacuna::test {
namespace {

constexpr int64_t kBlock = 8;

class XAttention : public testing::Test {
 protected:
  Picture run(const Input& in, std::initializer_list<std::pair<const char*, double>> values,
              int64_t head = 0) {
    Params params = params_of(method_, {{"block", kBlock}, {"stride", 4}});
    for (const auto& [name, value] : values) params.set(name, value);
    return picture(select(method_, params, in, *backend_).mask, head);
  }

  const Method& method_ = find_method("xattention");
  std::unique_ptr<Backend> backend_ = make_backend("ref");
};

// Masses 1, 9, 2, 4 of 16: the fewest blocks that reach p, the crossing one included.
TEST_F(XAttention, KeepsTheShortestPrefix) {
  const Input in = weighted_blocks({{1, 9, 2, 4}}, kBlock);
  for (const double stride : {4.0, 8.0}) {
    EXPECT_EQ(run(in, {{"stride", stride}, {"top_p", 0.5}}), Picture(4, ".#.."));
    EXPECT_EQ(run(in, {{"stride", stride}, {"top_p", 0.6}}), Picture(4, ".#.#"));
    EXPECT_EQ(run(in, {{"stride", stride}, {"top_p", 0.9}}), Picture(4, ".###"));
    EXPECT_EQ(run(in, {{"stride", stride}, {"top_p", 0.95}}), Picture(4, "####"));
  }
}

TEST_F(XAttention, OptionsAddBlocks) {
  const Input in = weighted_blocks({{1, 9, 2, 4}}, kBlock);
  EXPECT_EQ(run(in, {{"top_p", 0.5}, {"compat", 1}}), Picture(4, "##.."));
  EXPECT_EQ(run(in, {{"top_p", 0.5}, {"keep_sink", 1}}), (Picture{"####", ".#..", ".#..", ".#.."}));
  EXPECT_EQ(run(in, {{"top_p", 0.5}, {"keep_recent", 1}}),
            (Picture{"##..", ".#..", ".##.", ".#.#"}));
}

// Two frames of 12 tokens in blocks of 8: the first frame touches blocks 0 and 1.
TEST_F(XAttention, FirstFrameKeepsItsKeyBlocks) {
  Input in = weighted_blocks({{1, 2, 9}}, kBlock);
  in.shape.grid = {2, 3, 4};
  EXPECT_EQ(run(in, {{"top_p", 0.5}, {"first_frame", 1}}), Picture(3, "###"));
  in.shape.grid = {3, 2, 4};
  EXPECT_EQ(run(in, {{"top_p", 0.5}, {"first_frame", 1}}), Picture(3, "#.#"));
}

// The last 4 tokens are text: block 3 holds them, and its row and column stay.
TEST_F(XAttention, TextIsKept) {
  Input in = weighted_blocks({{1, 9, 2, 4}}, kBlock);
  in.shape.grid = {1, 1, 28};
  in.shape.text_tokens = 4;
  EXPECT_EQ(run(in, {{"top_p", 0.5}}), (Picture{".#.#", ".#.#", ".#.#", "####"}));
}

TEST_F(XAttention, TopPMayDifferPerHead) {
  const Input in = weighted_blocks(Weights(3, {1, 9, 2, 4}), kBlock);
  Params params = params_of(method_, {{"block", kBlock}, {"stride", 4}});
  params.set_per_head("top_p", {0.5, 0.6, 0.9});
  const Selection s = select(method_, params, in, *backend_, {0, 2});
  EXPECT_EQ(picture(s.mask, 0), Picture(4, ".#.."));
  EXPECT_EQ(picture(s.mask, 1), Picture(4, ".###"));
}

TEST_F(XAttention, RejectsValuesThatDoNotFit) {
  EXPECT_THAT(error_of([&] {
                method_.check(params_of(method_, {{"stride", 12}}));
              }),
              testing::HasSubstr("stride 12, expected 4, 8, 16 or 32"));
  EXPECT_THAT(error_of([&] {
                method_.check(params_of(method_, {{"stride", 32}, {"block", 48}}));
              }),
              testing::HasSubstr("block 48, expected a multiple of stride 32"));
}

}  // namespace
}  // namespace lacuna::test
