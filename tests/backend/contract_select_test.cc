// SPDX-License-Identifier: Apache-2.0
// Selection operations of every backend against the reference.
#include <gtest/gtest.h>

#include <numeric>

#include "lacuna/core/error.h"
#include "lacuna/core/threads.h"
#include "tests/support/attend_expect.h"
#include "tests/support/backends.h"
#include "tests/support/compare.h"
#include "tests/support/poisoned.h"
#include "tests/support/shapes.h"

namespace lacuna::test {
namespace {

using SelectContract = BackendTest;

TEST_P(SelectContract, BlockMean) {
  Rng rng(1);
  for (int turn = 0; turn < turns(40); ++turn) {
    const DType dtype = turn % 2 == 0 ? DType::f32 : DType::bf16;
    const int64_t len = rng.integer(1, 300), d = rng.pick<int64_t>({1, 7, 64, 80, 128});
    const Poisoned x(dtype, 3, len, d, static_cast<Storage>(turn % 4));
    fill_normal(x.view(), turn, 1.0, 0.5);
    BlockLayout layout = BlockLayout::uniform(len, static_cast<int32_t>(rng.integer(1, 130)));
    if (turn % 5 == 0) {
      const auto cut = static_cast<int32_t>(len / 2), end = static_cast<int32_t>(len);
      layout = BlockLayout::explicit_offsets(len, 2, {0, cut, cut, end, 0, 0, 1, end});
    }
    const std::vector<int32_t> heads{2, 0};
    const Tensor out(DType::f32, {2, layout.num_blocks, d}),
        expected(DType::f32, {2, layout.num_blocks, d});
    ref_->block_mean(x.view(), heads, layout, expected);
    backend_->block_mean(x.view(), heads, layout, out);
    EXPECT_TRUE(close(out, expected, network(DType::f32), fmt::format("len {} d {}", len, d)));
  }
}

TEST_P(SelectContract, AntidiagonalScores) {
  Rng rng(2);
  for (int turn = 0; turn < turns(40); ++turn) {
    const DType dtype = turn % 2 == 0 ? DType::f32 : DType::bf16;
    const int32_t stride = rng.pick<int32_t>({4, 8, 16});
    const int32_t block_q = rng.pick<int32_t>({16, 64, 128}),
                  block_k = rng.pick<int32_t>({16, 64, 128});
    const int64_t q_len = rng.integer(1, 400), k_len = turn % 3 == 0 ? rng.integer(1, 400) : q_len;
    const int64_t d = rng.pick<int64_t>({64, 128, 40});
    const bool compat = turn % 4 == 3;
    const Poisoned q(dtype, 3, q_len, d, static_cast<Storage>(turn % 4)),
        k(dtype, 3, k_len, d, static_cast<Storage>(turn % 4));
    fill_normal(q.view(), 2 * turn, 3.0);
    fill_normal(k.view(), 2 * turn + 1);
    const BlockLayout ql = BlockLayout::uniform(q_len, block_q),
                      kl = BlockLayout::uniform(k_len, block_k);
    const std::vector<int32_t> heads{2, 1};
    const Tensor out(DType::f32, {2, ql.num_blocks, kl.num_blocks});
    const Tensor expected(DType::f32, {2, ql.num_blocks, kl.num_blocks});
    const float scale = 1.0f / std::sqrt(static_cast<float>(d));
    ref_->antidiagonal_scores(q.view(), k.view(), heads, ql, kl, scale, stride, compat, expected);
    backend_->antidiagonal_scores(q.view(), k.view(), heads, ql, kl, scale, stride, compat, out);
    const int64_t shape[] = {2, ql.num_blocks, kl.num_blocks};
    EXPECT_TRUE(near_abs(
        values(out), values(expected), mass_abs(dtype), shape,
        fmt::format("{} q_len {} k_len {} d {} blocks {}x{} stride {} compat {}", dtype_name(dtype),
                    q_len, k_len, d, block_q, block_k, stride, compat)));
  }
}

// Blocks of more groups than a tile of any backend has rows, and of a number that does not divide
// it.
TEST_P(SelectContract, AntidiagonalScoresOfLargeAndOddBlocks) {
  for (const int32_t block : {1024, 96})
    for (const bool compat : {false, true}) {
      const DType dtype = compat ? DType::bf16 : DType::f32;
      const int64_t q_len = 1501, k_len = 1303;
      const Tensor q = random_tensor(dtype, {1, q_len, 16}, 1, 3.0),
                   k = random_tensor(dtype, {1, k_len, 16}, 2);
      const BlockLayout ql = BlockLayout::uniform(q_len, block),
                        kl = BlockLayout::uniform(k_len, block);
      const std::vector<int32_t> head{0};
      const Tensor out(DType::f32, {1, ql.num_blocks, kl.num_blocks});
      const Tensor expected(DType::f32, {1, ql.num_blocks, kl.num_blocks});
      ref_->antidiagonal_scores(q, k, head, ql, kl, 0.25f, 4, compat, expected);
      backend_->antidiagonal_scores(q, k, head, ql, kl, 0.25f, 4, compat, out);
      const int64_t shape[] = {1, ql.num_blocks, kl.num_blocks};
      EXPECT_TRUE(near_abs(values(out), values(expected), mass_abs(dtype), shape,
                           fmt::format("block {} compat {}", block, compat)));
    }
}

TEST_P(SelectContract, BlockMass) {
  Rng rng(5);
  for (int turn = 0; turn < turns(40); ++turn) {
    const DType dtype = turn % 2 == 0 ? DType::f32 : DType::bf16;
    const int64_t q_len = rng.integer(1, 300), k_len = turn % 3 == 0 ? rng.integer(1, 300) : q_len;
    const int64_t d = rng.pick<int64_t>({64, 128, 40});
    const Poisoned q(dtype, 3, q_len, d, static_cast<Storage>(turn % 4)),
        k(dtype, 3, k_len, d, static_cast<Storage>(turn % 4));
    fill_normal(q.view(), 2 * turn, 2.0);
    fill_normal(k.view(), 2 * turn + 1);
    BlockLayout ql = BlockLayout::uniform(q_len, rng.pick<int32_t>({8, 64, 150})),
                kl = BlockLayout::uniform(k_len, rng.pick<int32_t>({8, 64, 150}));
    if (turn % 5 == 0) {
      const auto cut = static_cast<int32_t>(k_len / 2), end = static_cast<int32_t>(k_len);
      kl = BlockLayout::explicit_offsets(k_len, 2, {0, cut, cut, end, 0, 0, 1, end});
    }
    if (turn % 5 == 1) {
      const auto end = static_cast<int32_t>(q_len);
      ql = BlockLayout::explicit_offsets(q_len, 2, {0, 1, 1, end, 0, 0, end / 2, end});
    }
    const std::vector<int32_t> heads{2, 1};
    // A normaliser near the true one: masses stay near 1.
    std::vector<float> lse(static_cast<size_t>(3 * q_len));
    for (float& x : lse) x = static_cast<float>(5.0 + rng.normal());
    const float scale = 1.0f / std::sqrt(static_cast<float>(d));
    const Tensor out(DType::f32, {2, ql.num_blocks, kl.num_blocks});
    const Tensor expected(DType::f32, {2, ql.num_blocks, kl.num_blocks});
    ref_->block_mass(q.view(), k.view(), lse.data(), heads, ql, kl, scale, expected);
    backend_->block_mass(q.view(), k.view(), lse.data(), heads, ql, kl, scale, out);
    double peak = 1.0;
    for (const double x : values(expected)) peak = std::max(peak, x);
    const int64_t shape[] = {2, ql.num_blocks, kl.num_blocks};
    EXPECT_TRUE(near_abs(values(out), values(expected), peak * mass_abs(dtype, 10.0), shape,
                         fmt::format("{} q_len {} k_len {} d {} turn {}", dtype_name(dtype), q_len,
                                     k_len, d, turn)));
  }
}

// With the log-sum-exp of the same q and k: what a dense call reports.
TEST_P(SelectContract, BlockMassOfItsOwnLseIsTheDenseBlockMass) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    AttendSpec spec{.dtype = dtype, .heads = 3, .q_len = 205, .k_len = 205, .head_dim = 64};
    spec.block_q = spec.block_k = 32;
    const AttendCase c(spec);
    const AttendResult dense = c.run(*backend_);
    const AttendParams p = c.params();
    const BlockLayout layout = BlockLayout::uniform(205, 32);
    const std::vector<int32_t> heads{0, 1, 2};
    const Tensor mass(DType::f32, {3, 7, 7});
    const auto view = [&](const void* data, int64_t head_stride, int64_t token_stride) {
      TensorView x = make_view(const_cast<void*>(data), dtype, {3, 205, 64});
      x.stride = {head_stride, token_stride, 1};
      return x;
    };
    backend_->block_mass(view(p.q, p.q_head_stride, p.q_token_stride),
                         view(p.k, p.k_head_stride, p.k_token_stride), dense.lse.data(), heads,
                         layout, layout, p.sm_scale, mass);
    EXPECT_TRUE(near_abs(std::span<const float>(mass.as<float>(), 3 * 7 * 7), dense.block_mass,
                         2 * mass_abs(dtype), std::string(dtype_name(dtype))));
    for (int64_t row = 0; row < 3 * 7; ++row)
      EXPECT_NEAR(std::accumulate(mass.as<float>() + row * 7, mass.as<float>() + row * 7 + 7, 0.0),
                  1.0, 10 * mass_abs(dtype));
  }
}

double squared_distance(const TensorView& x, int64_t x_at, const TensorView& c, int64_t c_at) {
  double sum = 0.0;
  for (int64_t n = 0; n < x.shape[2]; ++n)
    sum += std::pow(get(x, x_at + n) - get(c, c_at + n), 2.0);
  return sum;
}

// Where two centroids are equally near up to rounding a backend may take either, but of equal
// centroids the first.
TEST_P(SelectContract, NearestCentroids) {
  Rng rng(5);
  for (int turn = 0; turn < turns(32); ++turn) {
    const DType dtype = turn % 2 == 0 ? DType::f32 : DType::bf16;
    const int64_t len = rng.integer(1, 500), d = rng.pick<int64_t>({1, 7, 64, 80, 128});
    const int64_t count = rng.pick<int64_t>({1, 2, 33, 128, 129, 300});
    const Poisoned x(dtype, 3, len, d, static_cast<Storage>(turn % 4));
    fill_normal(x.view(), turn, 1.0, 0.5);
    const Tensor centroids = random_tensor(dtype, {2, count, d}, 100 + turn, 1.0, 0.5);
    const TensorView& c = centroids;
    for (int64_t i = 0; i < 2; ++i)  // every third is a copy
      for (int64_t j = 2; j < count; j += 3)
        for (int64_t n = 0; n < d; ++n)
          put(c, (i * count + j) * d + n, get(c, (i * count + j / 2) * d + n));
    const std::vector<int32_t> heads{2, 0};
    const Tensor out(DType::i32, {2, len}), expected(DType::i32, {2, len});
    ref_->nearest_centroids(x.view(), heads, c, expected);
    backend_->nearest_centroids(x.view(), heads, c, out);
    for (int64_t i = 0; i < 2; ++i)
      for (int64_t t = 0; t < len; ++t) {
        const int32_t got = out.as<int32_t>()[i * len + t];
        const int32_t want = expected.as<int32_t>()[i * len + t];
        ASSERT_TRUE(got >= 0 && got < count) << got;
        if (got == want) continue;
        const int64_t at = heads[i] * x.view().stride[0] + t * x.view().stride[1];
        const double least = squared_distance(x.view(), at, c, (i * count + want) * d);
        const double chosen = squared_distance(x.view(), at, c, (i * count + got) * d);
        double scale = 0.0;
        for (int64_t n = 0; n < d; ++n)
          scale += std::pow(get(x.view(), at + n), 2.0) +
                   std::pow(get(c, (i * count + got) * d + n), 2.0);
        EXPECT_LE(chosen - least, kNearestShare * scale) << turn << " token " << t;
        EXPECT_FALSE(chosen == least && got > want) << turn << " token " << t;
      }
  }
}

TEST_P(SelectContract, NearestCentroidsEdges) {
  Tensor x = Tensor::zeros(DType::f32, {1, 3, 64});
  const Tensor centroids = Tensor::zeros(DType::f32, {1, 40, 64}), labels(DType::i32, {1, 3});
  x.as<float>()[64] = std::nanf("");
  const std::vector<int32_t> head{0};
  backend_->nearest_centroids(x, head, centroids, labels);
  EXPECT_EQ(labels.as<int32_t>()[0], 0);
  EXPECT_TRUE(labels.as<int32_t>()[1] >= 0 && labels.as<int32_t>()[1] < 40);
  EXPECT_EQ(labels.as<int32_t>()[2], 0);
  for (Backend* backend : {ref_.get(), backend_.get()}) {
    EXPECT_THROW(backend->nearest_centroids(x, std::vector<int32_t>{1}, centroids, labels), Error);
    EXPECT_THROW(backend->nearest_centroids(x, head, Tensor(DType::bf16, {1, 40, 64}), labels),
                 Error);
    EXPECT_THROW(backend->nearest_centroids(x, head, centroids, Tensor(DType::i32, {1, 4})), Error);
  }
}

// Scores in eighths, so that ties and exact crossings are common.
TEST_P(SelectContract, TopPAndTopKEqualIncludingTies) {
  Rng rng(3);
  for (int turn = 0; turn < turns(60); ++turn) {
    const int64_t heads = rng.integer(1, 3);
    const auto nq = static_cast<int32_t>(rng.integer(1, 5));
    const auto nk = static_cast<int32_t>(rng.pick<int64_t>({1, 2, 63, 64, 65, 129, 300}));
    const Tensor scores(DType::f32, {heads, nq, nk});
    const bool eighths = turn % 2 == 0;
    for (int64_t i = 0; i < scores.numel(); ++i)
      scores.as<float>()[i] = eighths ? static_cast<float>(rng.integer(0, 8)) / 8.0f
                                      : static_cast<float>(std::exp(3.0 * rng.normal()));
    std::vector<float> p;
    std::vector<int32_t> top_k;
    for (int64_t h = 0; h < heads; ++h) {
      p.push_back(eighths ? static_cast<float>(rng.integer(0, 4)) / 4.0f
                          : static_cast<float>(rng.uniform()));
      top_k.push_back(static_cast<int32_t>(rng.integer(0, nk + 2)));
    }
    BlockMask a(heads, nq, nk), b(heads, nq, nk);
    a.set(0, 0, nk - 1);  // bits are added to what is there
    b.set(0, 0, nk - 1);
    ref_->select_top_p(scores, p, a);
    backend_->select_top_p(scores, p, b);
    EXPECT_EQ(a, b) << "top_p turn " << turn << " nk " << nk;
    BlockMask c(heads, nq, nk), d(heads, nq, nk);
    ref_->select_top_k(scores, top_k, c);
    backend_->select_top_k(scores, top_k, d);
    EXPECT_EQ(c, d) << "top_k turn " << turn << " nk " << nk;
  }
}

TEST_P(SelectContract, SelectionEdges) {
  const Tensor zeros = Tensor::zeros(DType::f32, {1, 2, 70});
  BlockMask a(1, 2, 70), b(1, 2, 70);
  ref_->select_top_p(zeros, std::vector<float>{0.9f}, a);
  backend_->select_top_p(zeros, std::vector<float>{0.9f}, b);
  EXPECT_EQ(a, b);
  b.validate();
  // Both zeros are one score; top-k ranks negative and infinite ones too.
  const Tensor signs = Tensor::zeros(DType::f32, {1, 2, 70});
  const float kinds[] = {0.0f, -0.0f, -2.0f, std::numeric_limits<float>::infinity(), -1e-40f};
  for (int i = 0; i < 140; ++i) signs.as<float>()[i] = kinds[(i * 7 + 1) % 5];
  for (const int32_t k : {1, 20, 40, 70}) {
    BlockMask c(1, 2, 70), d(1, 2, 70);
    ref_->select_top_k(signs, std::vector<int32_t>{k}, c);
    backend_->select_top_k(signs, std::vector<int32_t>{k}, d);
    EXPECT_EQ(c, d) << "top_k " << k;
  }
  Tensor bad = Tensor::zeros(DType::f32, {1, 2, 70});
  bad.as<float>()[80] = std::nanf("");
  EXPECT_THROW(backend_->select_top_p(bad, std::vector<float>{0.9f}, b), Error);
  EXPECT_THROW(backend_->select_top_k(bad, std::vector<int32_t>{2}, b), Error);
  bad.as<float>()[80] = -1.0f;
  EXPECT_THROW(backend_->select_top_p(bad, std::vector<float>{0.9f}, b), Error);
  EXPECT_THROW(backend_->select_top_p(zeros, std::vector<float>{0.9f, 0.9f}, b), Error);
  BlockMask wrong(1, 2, 71);
  EXPECT_THROW(backend_->select_top_k(zeros, std::vector<int32_t>{2}, wrong), Error);
}

TEST_P(SelectContract, GatherAndScatter) {
  Rng rng(4);
  for (int turn = 0; turn < turns(16); ++turn) {
    const DType dtype = turn % 2 == 0 ? DType::f32 : DType::bf16;
    const int64_t len = rng.integer(1, 200), d = rng.pick<int64_t>({1, 5, 64, 128});
    const auto storage = static_cast<Storage>(turn % 4);
    const Poisoned x(dtype, 2, len, d, storage), a(dtype, 2, len, d, Storage::padded),
        b(dtype, 2, len, d, Storage::padded);
    fill_normal(x.view(), turn);
    std::vector<int32_t> order;
    for (int h = 0; h < 2; ++h) {
      std::vector<int32_t> row(static_cast<size_t>(len));
      std::iota(row.begin(), row.end(), 0);
      for (int64_t i = len - 1; i > 0; --i) std::swap(row[i], row[rng.integer(0, i)]);
      order.insert(order.end(), row.begin(), row.end());
    }
    const int64_t head_stride = turn % 3 == 0 ? 0 : len;
    ref_->gather_tokens(x.view(), order.data(), head_stride, a.view());
    backend_->gather_tokens(x.view(), order.data(), head_stride, b.view());
    EXPECT_EQ(values(a.view()), values(b.view()));
    ref_->scatter_tokens(x.view(), order.data(), head_stride, a.view());
    backend_->scatter_tokens(x.view(), order.data(), head_stride, b.view());
    EXPECT_EQ(values(a.view()), values(b.view()));
    EXPECT_TRUE(b.intact());
  }
}

TEST_P(SelectContract, MergeLse) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (Storage storage : {Storage::heads_first, Storage::tokens_first, Storage::odd}) {
      const int64_t h = 3, n = 70, d = 64;
      const Poisoned a(dtype, h, n, d, storage), b(dtype, h, n, d, storage),
          expected(dtype, h, n, d, storage);
      fill_normal(a.view(), 1);
      fill_normal(expected.view(), 1);
      fill_normal(b.view(), 2);
      std::vector<float> lse_a = random_floats(h * n, 3, 5.0), lse_b = random_floats(h * n, 4, 5.0);
      const float inf = std::numeric_limits<float>::infinity();
      lse_a[5] = lse_b[6] = lse_a[7] = lse_b[7] = -inf;
      for (int64_t row : {5, 7})  // rows without keys are 0
        for (int64_t c = 0; c < d; ++c) {
          put(a.view(), row * a.view().stride[1] + c, 0.0);
          put(expected.view(), row * a.view().stride[1] + c, 0.0);
        }
      std::vector<float> lse_expected = lse_a;
      ref_->merge_lse(expected.view(), lse_expected.data(), b.view(), lse_b.data());
      backend_->merge_lse(a.view(), lse_a.data(), b.view(), lse_b.data());
      EXPECT_TRUE(close(a.view(), expected.view(), network(dtype), storage_name(storage)));
      EXPECT_TRUE(near_abs(lse_a, lse_expected, lse_abs(DType::f32), "merged lse"));
      EXPECT_TRUE(a.intact() && b.intact());
    }
}

// Tokens more than once, or not at all; each head its own.
TEST_P(SelectContract, GatherTakesAnyTokens) {
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const int64_t rows : {1, 7, 600}) {
      const Poisoned x(dtype, 2, 50, 5, Storage::odd), a(dtype, 2, rows, 5, Storage::padded),
          b(dtype, 2, rows, 5, Storage::padded);
      fill_normal(x.view(), 3);
      std::vector<int32_t> order;
      Rng rng(5);
      for (int64_t i = 0; i < 2 * rows; ++i)
        order.push_back(static_cast<int32_t>(rng.integer(0, 49)));
      ref_->gather_tokens(x.view(), order.data(), rows, a.view());
      backend_->gather_tokens(x.view(), order.data(), rows, b.view());
      EXPECT_EQ(values(a.view()), values(b.view()));
      EXPECT_TRUE(b.intact());
      if (rows != 50) {
        EXPECT_THROW(backend_->scatter_tokens(x.view(), order.data(), rows, b.view()), Error);
      }
    }
}

TEST_P(SelectContract, CopiesAndAddsAsTheHostDoes) {
  const Tensor x = random_tensor(DType::f32, {6, 40}, 1), y = random_tensor(DType::f32, {40, 6}, 2);
  TensorView turned = y;
  std::swap(turned.shape[0], turned.shape[1]);
  std::swap(turned.stride[0], turned.stride[1]);
  const Tensor rounded(DType::bf16, {6, 40}), wide(DType::f32, {6, 40}), sum(DType::f32, {6, 40});
  backend_->copy(turned, rounded);
  backend_->copy(rounded, wide);
  backend_->add(x, wide, sum);
  for (int64_t i = 0; i < 6; ++i)
    for (int64_t j = 0; j < 40; ++j) {
      const float kept = static_cast<float>(BFloat16(y.as<float>()[j * 6 + i]));
      EXPECT_EQ(wide.as<float>()[i * 40 + j], kept);
      EXPECT_EQ(sum.as<float>()[i * 40 + j], x.as<float>()[i * 40 + j] + kept);
    }
}

TEST_P(SelectContract, SameBitsForOneAndTwoThreads) {
  const int before = num_threads();
  const Tensor q = random_tensor(DType::bf16, {3, 700, 64}, 1, 3.0);
  const BlockLayout layout = BlockLayout::uniform(700, 64);
  const std::vector<int32_t> heads{0, 1, 2};
  const std::vector<float> lse(3 * 700, 3.0f);
  std::vector<std::vector<double>> means, scores, masses;
  std::vector<std::vector<int32_t>> labels;
  for (int threads : {1, 2}) {
    set_num_threads(threads);
    const Tensor mean(DType::f32, {3, 11, 64}), score(DType::f32, {3, 11, 11});
    backend_->block_mean(q, heads, layout, mean);
    backend_->antidiagonal_scores(q, q, heads, layout, layout, 0.125f, 8, false, score);
    const Tensor mass(DType::f32, {3, 11, 11});
    backend_->block_mass(q, q, lse.data(), heads, layout, layout, 0.125f, mass);
    masses.push_back(values(mass));
    means.push_back(values(mean));
    scores.push_back(values(score));
    const Tensor label(DType::i32, {3, 700});
    backend_->nearest_centroids(q, heads, random_tensor(DType::bf16, {3, 140, 64}, 2, 3.0), label);
    labels.emplace_back(label.as<int32_t>(), label.as<int32_t>() + label.numel());
  }
  set_num_threads(before);
  EXPECT_EQ(means[0], means[1]);
  EXPECT_EQ(scores[0], scores[1]);
  EXPECT_EQ(masses[0], masses[1]);
  EXPECT_EQ(labels[0], labels[1]);
}

INSTANTIATE_TEST_SUITE_P(Backends, SelectContract, testing::ValuesIn(backends_under_test()),
                         choice_name);

}  // namespace
}  // namespace lacuna::test
