// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "lacuna/core/convert.h"
#include "tests/methods/fixtures.h"

namespace lacuna::test {
namespace {

constexpr int64_t kBlock = 8;

float* token(const Tensor& x, const Input& in, int64_t t, int64_t head = 0) {
  return x.as<float>() + (head * in.shape.seq_len() + t) * in.shape.head_dim;
}

// q = (sqrt(d), 0, ...) everywhere and k = (ln w_b, 1, 0, ...) in block b: the scaled logit of
// block b is ln w_b, and all blocks are alike within.
Input weighted_blocks(const std::vector<double>& weights, int64_t num_heads = 1) {
  Shape shape{{1, 1, kBlock * static_cast<int64_t>(weights.size())}};
  shape.num_heads = num_heads;
  Input in = make_input(shape);
  for (const Tensor* x : {&in.q, &in.k})
    std::memset(x->as<float>(), 0, static_cast<size_t>(x->numel()) * sizeof(float));
  for (int64_t h = 0; h < num_heads; ++h)
    for (int64_t t = 0; t < shape.seq_len(); ++t) {
      token(in.q, in, t, h)[0] = std::sqrt(static_cast<float>(shape.head_dim));
      token(in.k, in, t, h)[0] =
          static_cast<float>(std::log(weights[static_cast<size_t>(t / kBlock)]));
      token(in.k, in, t, h)[1] = 1.0f;
    }
  return in;
}

class Sparge : public testing::TestWithParam<const char*> {
 protected:
  Params params(std::initializer_list<std::pair<const char*, double>> values) {
    Params p = params_of(method_, {{"block_q", kBlock}, {"block_k", kBlock}});
    for (const auto& [name, value] : values) p.set(name, value);
    return p;
  }
  Picture run(const Input& in, std::initializer_list<std::pair<const char*, double>> values) {
    return picture(select(method_, params(values), in, *backend_).mask);
  }

  const Method& method_ = find_method("sparge");
  std::unique_ptr<Backend> backend_ = make_backend(GetParam());
};

// Masses 1, 9, 2, 4 of 16.
TEST_P(Sparge, TopKKeepsAShareOfTheBlocks) {
  const Input in = weighted_blocks({1, 9, 2, 4});
  EXPECT_EQ(run(in, {{"top_k", 0.1}}), Picture(4, ".#..")) << "at least one";
  EXPECT_EQ(run(in, {{"top_k", 0.49}}), Picture(4, ".#.."));
  EXPECT_EQ(run(in, {{"top_k", 0.5}}), Picture(4, ".#.#"));
  EXPECT_EQ(run(in, {{"top_k", 0.75}}), Picture(4, ".###"));
  EXPECT_EQ(run(in, {{"top_k", 1.0}}), Picture(4, "####"));
}

// 9 / 16 = 0.5625, 13 / 16 = 0.8125, 15 / 16 = 0.9375: the block that crosses is not kept.
TEST_P(Sparge, TopCdfDropsTheBlockThatCrosses) {
  const Input in = weighted_blocks({1, 9, 2, 4});
  const auto kept = [&](double top_cdf) {
    return run(in, {{"top_k", 0.0}, {"top_cdf", top_cdf}})[0];
  };
  EXPECT_EQ(kept(0.5), ".#..") << "at least one";
  EXPECT_EQ(kept(0.8), ".#..");
  EXPECT_EQ(kept(0.82), ".#.#");
  EXPECT_EQ(kept(0.95), ".###");
  EXPECT_EQ(kept(1.0), "####");
}

// Block 2 alternates between +e and -e, so its mean says nothing; queries of block 1 likewise.
TEST_P(Sparge, BlocksThatAreNotAlikeAreComputed) {
  const Input in = weighted_blocks({1, 9, 2, 4});
  for (int64_t i = 0; i < kBlock; ++i) {
    const float sign = i % 2 == 0 ? 1.0f : -1.0f;
    std::memset(token(in.k, in, 2 * kBlock + i), 0, sizeof(float) * 32);
    token(in.k, in, 2 * kBlock + i)[5] = 20.0f * sign;
    token(in.q, in, kBlock + i)[0] *= sign;
  }
  EXPECT_EQ(run(in, {{"top_k", 0.25}, {"similarity", 0.5}}),
            (Picture{".##.", "####", ".##.", ".##."}));
  EXPECT_EQ(run(in, {{"top_k", 0.25}, {"similarity", -0.1}})[0], ".#..") << "off";
}

// Its keys are alike (cosine 0.99), until the mean of all keys is taken off.
TEST_P(Sparge, KeysAreComparedWithoutTheirMean) {
  const Input in = weighted_blocks({1, 9, 2, 4});
  for (int64_t t = 0; t < in.shape.seq_len(); ++t) token(in.k, in, t)[7] = 100.0f;
  for (int64_t i = 0; i < kBlock; ++i)
    token(in.k, in, 2 * kBlock + i)[5] = i % 2 == 0 ? 10.0f : -10.0f;
  EXPECT_EQ(run(in, {{"top_k", 0.25}, {"similarity", 0.6}}), Picture(4, ".##."));
}

// A column that fails the guard takes no mass from the others: without block 1 the masses are
// 1, 2, 4 of 7, and 4 / 7 = 0.57, 6 / 7 = 0.86.
TEST_P(Sparge, BlocksThatFailTakeNoMass) {
  const Input in = weighted_blocks({1, 9, 2, 4});
  for (int64_t i = 0; i < kBlock; ++i) token(in.k, in, kBlock + i)[5] = i % 2 == 0 ? 40.0f : -40.0f;
  EXPECT_EQ(run(in, {{"top_k", 0.0}, {"top_cdf", 0.6}, {"similarity", 0.5}})[0], ".#.#");
  EXPECT_EQ(run(in, {{"top_k", 0.0}, {"top_cdf", 0.87}, {"similarity", 0.5}})[0], ".###");
}

TEST_P(Sparge, MoreMassKeepsMoreBlocks) {
  const Input in = make_input({{5, 8, 9}, 21, 2});
  BlockMask previous;
  for (const double top_cdf : {0.1, 0.5, 0.8, 0.95, 0.999, 1.0}) {
    const Params p = params({{"top_k", 0}, {"top_cdf", top_cdf}, {"similarity", 0.3}});
    const BlockMask mask = select(method_, p, in, *backend_).mask;
    if (!previous.empty()) {
      BlockMask both = previous;
      both |= mask;
      EXPECT_EQ(both, mask) << top_cdf;
      EXPECT_LT(previous.count(0), mask.count(0)) << top_cdf;
    }
    previous = mask;
  }
  EXPECT_EQ(previous.count(1), int64_t{previous.num_q_blocks()} * previous.num_k_blocks());
}

TEST_P(Sparge, SinkTextAndHeads) {
  Input in = weighted_blocks({1, 9, 2, 4}, 3);
  EXPECT_EQ(run(in, {{"top_k", 0.25}, {"sink", 1}}), Picture(4, "##.."));
  in.shape.grid = {1, 1, 28};
  in.shape.text_tokens = 4;
  EXPECT_EQ(run(in, {{"top_k", 0.25}}), (Picture{".#.#", ".#.#", ".#.#", "####"}));
  in.shape.grid = {1, 1, 32};
  in.shape.text_tokens = 0;
  Params p = params({});
  p.set_per_head("top_k", {0.25, 0.5, 0.75});
  const Selection s = select(method_, p, in, *backend_, {0, 2});
  EXPECT_EQ(picture(s.mask, 0), Picture(4, ".#.."));
  EXPECT_EQ(picture(s.mask, 1), Picture(4, ".###"));
  Params bad = params({});
  bad.set_per_head("block_k", {8, 16, 8});
  EXPECT_THAT(error_of([&] { method_.check(bad); }), testing::HasSubstr("block_k per head"));
}

// Blocks along the curve are those of an input that was put in that order before.
TEST_P(Sparge, HilbertOrdersBeforeItPools) {
  const Shape shape{{4, 6, 8}, 9, 2};
  const Input in = make_input(shape);
  Input moved = make_input(shape);
  const Params plain = params({{"similarity", 0.4}});
  Params curved = plain;
  curved.set("hilbert", 1);
  const Selection got = select(method_, curved, in, *backend_);
  for (const auto& [from, to] : {std::pair{&in.q, &moved.q}, std::pair{&in.k, &moved.k}})
    backend_->gather_tokens(*from, got.q_order.order.data(), 0, *to);
  const Selection want = select(method_, plain, moved, *backend_);
  EXPECT_EQ(got.mask, want.mask);
  EXPECT_EQ(got.k_order.order, got.q_order.order);
  EXPECT_TRUE(want.q_order.empty());
  EXPECT_NE(got.mask, select(method_, plain, in, *backend_).mask);
}

TEST_P(Sparge, Bf16SelectsAsItsOwnValuesInF32) {
  Input in = make_input({{4, 6, 8}, 0, 2});
  Input half = make_input(in.shape);
  for (const auto& [f32, bf16] : {std::pair{&in.q, &half.q}, std::pair{&in.k, &half.k}}) {
    *bf16 = converted(*f32, DType::bf16);
    *f32 = converted(*bf16, DType::f32);
  }
  const Params p = params({{"similarity", 0.45}});
  const BlockMask want = select(method_, p, in, *backend_).mask;
  EXPECT_EQ(select(method_, p, half, *backend_).mask, want);
  EXPECT_NE(select(method_, params({}), half, *backend_).mask, want) << "the guard does nothing";
}

INSTANTIATE_TEST_SUITE_P(Backends, Sparge, testing::Values("ref", "cpu"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace lacuna::test
