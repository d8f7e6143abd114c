// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>

#include "tests/methods/fixtures.h"

namespace lacuna::test {
namespace {

// Keys and queries are one-hot in kind(token): a token attends to those of its own kind only.
void attend_within(const Input& in, int64_t head, const std::function<int64_t(int64_t)>& kind) {
  const int64_t n = in.shape.seq_len(), d = in.shape.head_dim;
  for (const Tensor* x : {&in.q, &in.k}) {
    float* rows = x->as<float>() + head * n * d;
    std::memset(rows, 0, static_cast<size_t>(n * d) * sizeof(float));
    for (int64_t t = 0; t < n; ++t) rows[t * d + kind(t) % d] = 10.0f;
  }
}

class Svg : public testing::Test {
 protected:
  Params params(std::initializer_list<std::pair<const char*, double>> values) {
    Params p = params_of(method_, {{"block", 16}});
    for (const auto& [name, value] : values) p.set(name, value);
    return p;
  }

  const Method& method_ = find_method("svg");
  std::unique_ptr<Backend> backend_ = make_backend("cpu");
};

// 8 frames of 32 tokens. Head 0 looks at its frame, head 1 at its position in all frames.
TEST_F(Svg, TellsSpatialFromTemporalHeads) {
  Shape shape{{8, 4, 8}, 0, 3};
  const Input in = make_input(shape);
  attend_within(in, 0, [](int64_t t) { return t / 32; });
  attend_within(in, 1, [](int64_t t) { return t % 32; });
  attend_within(in, 2, [](int64_t t) { return t % 32; });
  const TokenOrder raster = tile_order(shape.grid, 1, 1, 1), minor = frame_minor_order(shape.grid);
  for (const char* name : {"ref", "cpu"}) {
    const std::unique_ptr<Backend> backend = make_backend(name);
    const Selection s = select(method_, params({}), in, *backend);
    ASSERT_EQ(s.q_order.num_heads, 3);
    const auto order = [&](int64_t h) {
      return std::vector<int32_t>(s.q_order.head(h), s.q_order.head(h) + shape.seq_len());
    };
    EXPECT_EQ(order(0), raster.order);
    EXPECT_EQ(order(1), minor.order);
    EXPECT_EQ(order(2), minor.order);
    EXPECT_EQ(s.k_order.order, s.q_order.order);
    EXPECT_EQ(select(method_, params({}), in, *backend).q_order.order, s.q_order.order);
  }
}

// Queries of the first frame look at their position in all frames, all others at their frame.
TEST_F(Svg, RowsComeFromTheFirstSoMany) {
  Shape shape{{8, 4, 8}, 0, 1, 64};
  const Input in = make_input(shape);
  attend_within(in, 0, [](int64_t t) { return t < 32 ? t : 32 + t / 32; });
  for (int64_t t = 0; t < shape.seq_len(); ++t) {
    float* key = in.k.as<float>() + t * shape.head_dim;
    key[t % 32] = key[32 + t / 32] = 10.0f;
  }
  const auto temporal = [&](double max_row) {
    const Selection s = select(method_, params({{"max_row", max_row}}), in, *backend_);
    return s.q_order.order == frame_minor_order(shape.grid).order;
  };
  EXPECT_TRUE(temporal(32));
  EXPECT_FALSE(temporal(0)) << "all rows";
  EXPECT_FALSE(temporal(256));
}

// 256 tokens: 256 (1 - sqrt(0.7)) = 41.8 tokens are 3 blocks; the first frame is 2.
TEST_F(Svg, BandAndFirstFrame) {
  const Input in = make_input({{8, 4, 8}, 0, 1});
  EXPECT_EQ(
      picture(select(method_, params({}), in, *backend_).mask),
      (Picture{"####............", "#####...........", "######..........", "#######.........",
               "########........", "#########.......", "##.#######......", "##..#######.....",
               "##...#######....", "##....#######...", "##.....#######..", "##......#######.",
               "##.......#######", "##........######", "##.........#####", "##..........####"}));
  const BlockMask bare = select(method_, params({{"first_frame", 0}}), in, *backend_).mask;
  EXPECT_EQ(picture(bare)[8], ".....#######....");
}

// 60 video and 4 text tokens in blocks of 16: density 0.5 less 2 * 4 / 64 is 0.375, of which
// 64 (1 - sqrt(0.625)) = 13.4 tokens, one block. The last block holds text.
TEST_F(Svg, TextTakesItsShareAndIsKept) {
  const Input in = make_input({{3, 4, 5}, 4, 1});
  const Params p = params({{"density", 0.5}, {"first_frame", 0}});
  EXPECT_EQ(picture(select(method_, p, in, *backend_).mask),
            (Picture{"##.#", "####", ".###", "####"}));
}

TEST_F(Svg, DensityIsWhatWasAskedFor) {
  const Input in = make_input({{16, 8, 16}, 0, 2, 8});
  Params p = params({{"block", 8}, {"first_frame", 0}, {"samples", 4}});
  p.set_per_head("density", {0.25, 0.6});
  const Selection s = select(method_, p, in, *backend_);
  EXPECT_NEAR(s.mask.density(0, s.q_layout, s.k_layout), 0.25, 0.01);
  EXPECT_NEAR(s.mask.density(1, s.q_layout, s.k_layout), 0.6, 0.01);
}

TEST_F(Svg, OnlyDensityMayDifferPerHead) {
  Params p = params({});
  p.set_per_head("samples", {8, 16});
  EXPECT_THAT(error_of([&] { method_.check(p); }), testing::HasSubstr("samples per head"));
}

}  // namespace
}  // namespace lacuna::test
