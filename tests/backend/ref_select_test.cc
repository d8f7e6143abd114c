// SPDX-License-Identifier: Apache-2.0
// Pooling, antidiagonal scores, selection and permutation of the reference, worked by hand.
#include <gtest/gtest.h>

#include <numeric>

#include "lacuna/backend/ref/ref_backend.h"
#include "lacuna/core/error.h"
#include "tests/support/compare.h"
#include "tests/support/poisoned.h"

namespace lacuna::test {
namespace {

class RefSelect : public testing::Test {
 protected:
  std::unique_ptr<Backend> backend_ = make_ref_backend();

  // Blocks kept of a single row of scores.
  std::vector<int32_t> top_p(std::vector<float> scores, float p) {
    const auto n = static_cast<int32_t>(scores.size());
    BlockMask mask(1, 1, n);
    backend_->select_top_p(make_view(scores.data(), DType::f32, {1, 1, n}), std::vector<float>{p},
                           mask);
    return kept(mask);
  }
  std::vector<int32_t> top_k(std::vector<float> scores, int32_t k) {
    const auto n = static_cast<int32_t>(scores.size());
    BlockMask mask(1, 1, n);
    backend_->select_top_k(make_view(scores.data(), DType::f32, {1, 1, n}), std::vector<int32_t>{k},
                           mask);
    return kept(mask);
  }
  static std::vector<int32_t> kept(const BlockMask& mask) {
    std::vector<int32_t> blocks;
    for (int32_t kb = 0; kb < mask.num_k_blocks(); ++kb)
      if (mask.get(0, 0, kb)) blocks.push_back(kb);
    return blocks;
  }
};

using Blocks = std::vector<int32_t>;

// One channel: rows 0 and 1 see exp(z) = 1, 3, 4 of 8; row 2 sees 1, 1, 1 of 3.
TEST_F(RefSelect, BlockMassUnderAGivenNormaliser) {
  std::vector<float> q = {1.0f, 1.0f, 0.0f};
  std::vector<float> k = {0.0f, std::log(3.0f), std::log(4.0f)};
  std::vector<float> lse = {std::log(8.0f), std::log(8.0f), std::log(3.0f)};
  const BlockLayout layout = BlockLayout::uniform(3, 2);
  const Tensor mass(DType::f32, {1, 2, 2});
  const auto run = [&] {
    backend_->block_mass(make_view(q.data(), DType::f32, {1, 3, 1}),
                         make_view(k.data(), DType::f32, {1, 3, 1}), lse.data(),
                         std::vector<int32_t>{0}, layout, layout, 1.0f, mass);
    return std::vector<float>(mass.as<float>(), mass.as<float>() + 4);
  };
  const float expected[] = {0.5f, 0.5f, 2.0f / 3.0f, 1.0f / 3.0f};
  std::vector<float> got = run();
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(got[i], expected[i], 1e-6) << i;
  for (float& x : lse) x += std::log(2.0f);
  got = run();
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(got[i], expected[i] / 2.0f, 1e-6) << "a shift scales all";
}

TEST_F(RefSelect, TopPKeepsTheCrossingBlock) {
  EXPECT_EQ(top_p({0.125f, 0.5f, 0.25f, 0.125f}, 0.5f), (Blocks{1}));  // reached exactly
  EXPECT_EQ(top_p({0.125f, 0.5f, 0.25f, 0.125f}, 0.51f), (Blocks{1, 2}));
  EXPECT_EQ(top_p({0.125f, 0.5f, 0.25f, 0.125f}, 0.75f), (Blocks{1, 2}));
  EXPECT_EQ(top_p({0.125f, 0.5f, 0.25f, 0.125f}, 1.0f), (Blocks{0, 1, 2, 3}));
}

TEST_F(RefSelect, TopPTiesKeepTheLowerBlock) {
  EXPECT_EQ(top_p({1.0f, 1.0f, 1.0f, 1.0f}, 0.5f), (Blocks{0, 1}));
  EXPECT_EQ(top_p({1.0f, 2.0f, 1.0f, 2.0f, 2.0f}, 0.3f), (Blocks{1, 3}));
}

TEST_F(RefSelect, TopPScalesWithAnyRowSum) {
  EXPECT_EQ(top_p({100.0f, 500.0f, 400.0f}, 0.9f), (Blocks{1, 2}));
}

TEST_F(RefSelect, TopPKeepsOneBlockAtLeast) {
  EXPECT_EQ(top_p({0.25f, 0.75f}, 0.0f), (Blocks{1}));
  EXPECT_EQ(top_p({0.0f, 0.0f, 0.0f}, 0.9f), (Blocks{0}));
}

TEST_F(RefSelect, TopPDropsBlocksWithoutMassEvenAtOne) {
  EXPECT_EQ(top_p({0.5f, 0.0f, 0.5f}, 1.0f), (Blocks{0, 2}));
}

TEST_F(RefSelect, TopPRefusesScoresThatAreNoMass) {
  EXPECT_THROW(top_p({0.5f, -0.1f}, 0.9f), Error);
  EXPECT_THROW(top_p({0.5f, std::nanf("")}, 0.9f), Error);
  EXPECT_THROW(top_p({0.5f, 0.5f}, 1.5f), Error);
}

TEST_F(RefSelect, TopKTakesTheHighest) {
  EXPECT_EQ(top_k({3.0f, -1.0f, 9.0f, 4.0f}, 2), (Blocks{2, 3}));
  EXPECT_EQ(top_k({1.0f, 2.0f, 2.0f, 2.0f}, 2), (Blocks{1, 2}));
  EXPECT_EQ(top_k({1.0f, 2.0f}, 0), (Blocks{1}));
  EXPECT_EQ(top_k({1.0f, 2.0f}, 99), (Blocks{0, 1}));
}

TEST_F(RefSelect, BitsAreAddedAndParametersAreByHead) {
  std::vector<float> scores{0.7f, 0.2f, 0.1f, 0.7f, 0.2f, 0.1f};
  const TensorView view = make_view(scores.data(), DType::f32, {2, 1, 3});
  BlockMask mask(2, 1, 3);
  mask.set(0, 0, 2);
  backend_->select_top_p(view, std::vector<float>{0.5f, 0.85f}, mask);
  EXPECT_TRUE(mask.get(0, 0, 0) && !mask.get(0, 0, 1) && mask.get(0, 0, 2));
  EXPECT_TRUE(mask.get(1, 0, 0) && mask.get(1, 0, 1) && !mask.get(1, 0, 2));
  EXPECT_THROW(backend_->select_top_p(view, std::vector<float>{0.5f}, mask), Error);
  BlockMask other(2, 1, 4);
  EXPECT_THROW(backend_->select_top_k(view, std::vector<int32_t>{1, 1}, other), Error);
}

TEST_F(RefSelect, BlockMeanOfStridedHeadsAndRaggedTail) {
  const Poisoned x(DType::bf16, 3, 5, 2, Storage::odd);
  for (int64_t h = 0; h < 3; ++h)
    for (int64_t t = 0; t < 5; ++t)
      for (int64_t c = 0; c < 2; ++c)
        put(x.view(), h * x.view().stride[0] + t * x.view().stride[1] + c,
            10.0 * h + t - 100.0 * c);
  const Tensor out(DType::f32, {2, 3, 2});
  backend_->block_mean(x.view(), std::vector<int32_t>{2, 0}, BlockLayout::uniform(5, 2), out);
  const std::vector<double> expected{20.5, -79.5, 22.5, -77.5, 24, -76,
                                     0.5,  -99.5, 2.5,  -97.5, 4,  -96};
  EXPECT_EQ(values(out), expected);
}

TEST_F(RefSelect, BlockMeanOfEmptyBlocksIsZero) {
  const Tensor x = random_tensor(DType::f32, {1, 4, 1}, 3);
  const Tensor out(DType::f32, {1, 3, 1});
  backend_->block_mean(x, std::vector<int32_t>{0},
                       BlockLayout::explicit_offsets(4, 1, {0, 1, 1, 4}), out);
  EXPECT_EQ(out.as<float>()[0], x.as<float>()[0]);
  EXPECT_EQ(out.as<float>()[1], 0.0f);
  EXPECT_FLOAT_EQ(out.as<float>()[2],
                  (x.as<float>()[1] + x.as<float>()[2] + x.as<float>()[3]) / 3.0f);
}

// Two groups of 4 tokens with one channel; q.k over the antidiagonal i + j = 3.
TEST_F(RefSelect, AntidiagonalByHand) {
  Tensor q(DType::f32, {1, 8, 1}), k(DType::f32, {1, 8, 1});
  const float qs[] = {1, 2, 3, 4, 0, 0, 1, 0}, ks[] = {1, 0, 2, 1, 0, 3, 0, 1};
  std::copy_n(qs, 8, q.as<float>());
  std::copy_n(ks, 8, k.as<float>());
  const BlockLayout layout = BlockLayout::uniform(8, 4);
  const Tensor out(DType::f32, {1, 2, 2});
  backend_->antidiagonal_scores(q, k, std::vector<int32_t>{0}, layout, layout, 0.5f, 4, false, out);
  // Group 0 backwards is 4 3 2 1: with k group 0: 4 + 0 + 4 + 1 = 9, with group 1: 0+9+0+1 = 10.
  // Group 1 backwards is 0 1 0 0: 0 and 3. Times sm_scale / stride = 1/8.
  const double row0 = 1.0 / (1.0 + std::exp(1.0 / 8)), row1 = 1.0 / (1.0 + std::exp(3.0 / 8));
  const std::vector<double> expected{row0, 1.0 - row0, row1, 1.0 - row1};
  const int64_t shape[] = {1, 2, 2};
  EXPECT_TRUE(near_abs(values(out), expected, 1e-7, shape, "antidiagonal"));
}

// Five tokens, stride 4: the short groups hold one token and share one pair with any other.
TEST_F(RefSelect, AntidiagonalTailDividesByItsPairs) {
  Tensor q(DType::f32, {1, 5, 1}), k(DType::f32, {1, 5, 1});
  const float qs[] = {1, 2, 3, 4, 2}, ks[] = {1, 0, 2, 1, 5};
  std::copy_n(qs, 5, q.as<float>());
  std::copy_n(ks, 5, k.as<float>());
  const BlockLayout layout = BlockLayout::uniform(5, 4);
  const Tensor out(DType::f32, {1, 2, 2});
  backend_->antidiagonal_scores(q, k, std::vector<int32_t>{0}, layout, layout, 1.0f, 4, false, out);
  const double full = 9.0 / 4, tail_k = 4.0 * 5, tail_q = 2.0 * 1, both = 2.0 * 5;
  const double row0 = 1.0 / (1.0 + std::exp(tail_k - full));
  const double row1 = 1.0 / (1.0 + std::exp(both - tail_q));
  const std::vector<double> expected{row0, 1.0 - row0, row1, 1.0 - row1};
  const int64_t shape[] = {1, 2, 2};
  EXPECT_TRUE(near_abs(values(out), expected, 1e-7, shape, "antidiagonal tail"));
}

// The published padding: 5 tokens become 2048, short groups are filled with zeros and divided by
// the stride, and 510 padding groups with logit 0 take mass that is cut off.
TEST_F(RefSelect, AntidiagonalCompatKeepsThePadding) {
  Tensor q(DType::f32, {1, 5, 1}), k(DType::f32, {1, 5, 1});
  const float qs[] = {1, 2, 3, 4, 2}, ks[] = {1, 0, 2, 1, 5};
  std::copy_n(qs, 5, q.as<float>());
  std::copy_n(ks, 5, k.as<float>());
  const BlockLayout layout = BlockLayout::uniform(5, 8);
  const Tensor out(DType::f32, {1, 1, 1});
  backend_->antidiagonal_scores(q, k, std::vector<int32_t>{0}, layout, layout, 1.0f, 4, true, out);
  // Group 0 = 4 3 2 1 with k groups 1 0 2 1 and 5 0 0 0; group 1 = 0 0 0 2 with the same.
  const double a = std::exp(9.0 / 4), b = std::exp(20.0 / 4), c = std::exp(2.0 / 4), d = 1.0;
  const double expected = 0.5 * ((a + b) / (a + b + 510) + (c + d) / (c + d + 510));
  EXPECT_NEAR(out.as<float>()[0], expected, 1e-7);
  // Stride 8, block 16: the second half of the only block is padding and counts for it.
  const BlockLayout wide = BlockLayout::uniform(5, 16);
  backend_->antidiagonal_scores(q, k, std::vector<int32_t>{0}, wide, wide, 1.0f, 8, true, out);
  // Backwards after zeros: 0 0 0 2 4 3 2 1 with 1 0 2 1 5 0 0 0 = 2 + 20.
  const double e = std::exp(22.0 / 8);
  EXPECT_NEAR(out.as<float>()[0], (e + 1) / (e + 255), 1e-7);
}

TEST_F(RefSelect, AntidiagonalRowsSumToOne) {
  for (int64_t len : {1, 3, 16, 127, 130, 200})
    for (int32_t stride : {4, 8, 16}) {
      const Tensor q = random_tensor(DType::bf16, {3, len, 32}, 5, 3.0);
      const Tensor k = random_tensor(DType::bf16, {3, len + 9, 32}, 6, 3.0);
      const BlockLayout ql = BlockLayout::uniform(len, 64), kl = BlockLayout::uniform(len + 9, 32);
      const Tensor out(DType::f32, {2, ql.num_blocks, kl.num_blocks});
      backend_->antidiagonal_scores(q, k, std::vector<int32_t>{2, 1}, ql, kl, 0.18f, stride, false,
                                    out);
      const std::vector<double> scores = values(out);
      for (size_t row = 0; row < scores.size(); row += kl.num_blocks)
        EXPECT_NEAR(
            std::accumulate(scores.begin() + row, scores.begin() + row + kl.num_blocks, 0.0), 1.0,
            1e-6)
            << "len " << len << " stride " << stride;
    }
}

// Stride 1 scores every pair: the exact mass of the blocks.
TEST_F(RefSelect, AntidiagonalOfStrideOneIsTheExactMass) {
  const Tensor q = random_tensor(DType::f32, {1, 100, 16}, 7, 2.0);
  const Tensor k = random_tensor(DType::f32, {1, 100, 16}, 8);
  const BlockLayout layout = BlockLayout::uniform(100, 32);
  const Tensor out(DType::f32, {1, 4, 4}), attended(DType::f32, {1, 100, 16});
  backend_->antidiagonal_scores(q, k, std::vector<int32_t>{0}, layout, layout, 0.25f, 1, false,
                                out);
  std::vector<float> mass(16);
  AttendParams p;
  p.q = q.view().data, p.k = p.v = k.view().data, p.out = attended.view().data;
  p.q_token_stride = p.k_token_stride = p.v_token_stride = p.out_token_stride = 16;
  p.num_heads = 1, p.q_len = p.k_len = 100, p.head_dim = 16, p.sm_scale = 0.25f;
  p.block_q = p.block_k = 32, p.num_q_blocks = p.num_k_blocks = 4, p.block_mass = mass.data();
  backend_->attend(p);
  EXPECT_TRUE(near_abs(mass, std::vector<float>(out.as<float>(), out.as<float>() + 16), 1e-7,
                       "block mass"));
}

TEST_F(RefSelect, AntidiagonalRefusesBlocksThatCutGroups) {
  const Tensor q = random_tensor(DType::f32, {1, 16, 4}, 1);
  const Tensor out(DType::f32, {1, 2, 2});
  const BlockLayout layout = BlockLayout::uniform(16, 12);
  EXPECT_THROW(backend_->antidiagonal_scores(q, q, std::vector<int32_t>{0}, layout, layout, 1.0f, 8,
                                             false, out),
               Error);
  const BlockLayout good = BlockLayout::uniform(16, 8);
  EXPECT_THROW(
      backend_->antidiagonal_scores(q, q, std::vector<int32_t>{1}, good, good, 1.0f, 8, false, out),
      Error);
}

TEST_F(RefSelect, GatherThenScatterIsIdentity) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    const Poisoned x(dtype, 2, 6, 3, Storage::odd), mid(dtype, 2, 6, 3, Storage::padded),
        back(dtype, 2, 6, 3, Storage::tokens_first);
    fill_normal(x.view(), 4);
    const int32_t order[] = {3, 0, 5, 1, 2, 4, 5, 4, 3, 2, 1, 0};
    backend_->gather_tokens(x.view(), order, 6, mid.view());
    const auto at = [](const TensorView& t, int64_t h, int64_t i) {
      return get(t, h * t.stride[0] + i * t.stride[1] + 1);
    };
    EXPECT_EQ(at(mid.view(), 0, 2), at(x.view(), 0, 5));
    EXPECT_EQ(at(mid.view(), 1, 2), at(x.view(), 1, 3));
    backend_->scatter_tokens(mid.view(), order, 6, back.view());
    EXPECT_EQ(values(back.view()), values(x.view()));
    EXPECT_TRUE(mid.intact() && back.intact());
    backend_->gather_tokens(x.view(), order, 0, mid.view());  // one order for both heads
    EXPECT_EQ(at(mid.view(), 1, 2), at(x.view(), 1, 5));
  }
  const Tensor x = random_tensor(DType::f32, {1, 2, 3}, 1);
  const int32_t wrong[] = {0, 2};
  EXPECT_THROW(backend_->gather_tokens(x, wrong, 0, Tensor(DType::f32, {1, 2, 3})), Error);
}

}  // namespace
}  // namespace lacuna::test
