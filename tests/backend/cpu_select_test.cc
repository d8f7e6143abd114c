// SPDX-License-Identifier: Apache-2.0
// Selection operations of the CPU backend at sizes that take several chunks, against naive loops;
// the shared contract tests cover the small and odd shapes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "lacuna/backend/cpu/cpu_backend.h"
#include "lacuna/core/bf16.h"
#include "lacuna/core/rng.h"
#include "lacuna/core/threads.h"
#include "tests/support/tile_unit.h"

namespace lacuna {
namespace {

class CpuSelect : public testing::TestWithParam<cpu::Isa> {
 protected:
  void SetUp() override {
    const cpu::Isa has = test::with_tile_unit(cpu::active_isa());
    if (GetParam() > has)
      GTEST_SKIP() << "needs " << cpu::isa_name(GetParam()) << ", this run has "
                   << cpu::isa_name(has);
    backend_ = make_cpu_backend(GetParam(), has);
  }
  void TearDown() override { set_num_threads(threads_); }

  std::unique_ptr<Backend> backend_;
  const int threads_ = num_threads();
};

INSTANTIATE_TEST_SUITE_P(Isa, CpuSelect,
                         testing::Values(cpu::Isa::avx2, cpu::Isa::avx512, cpu::Isa::avx512_bf16,
                                         cpu::Isa::amx),
                         [](const auto& info) {
                           return std::string(info.param == cpu::Isa::amx
                                                  ? test::amx_name()
                                                  : cpu::isa_name(info.param));
                         });

// Token-major memory [len, 2, d] seen as [2, len, d].
struct Tokens {
  Tensor memory;
  TensorView view;
};

Tokens make_tokens(DType dtype, int64_t len, int64_t d, std::string_view name) {
  Tokens t{Tensor(dtype, {len, 2, d}), {}};
  std::vector<float> values(static_cast<size_t>(t.memory.numel()));
  fill_hash(name, 0.0, 2.0, values);
  for (int64_t i = 0; i < t.memory.numel(); ++i) {
    if (dtype == DType::f32) {
      t.memory.as<float>()[i] = values[i];
    } else {
      t.memory.as<BFloat16>()[i] = BFloat16(values[i]);
    }
  }
  t.view = t.memory;
  t.view.shape = {2, len, d};
  t.view.stride = {d, 2 * d, 1};
  return t;
}

double element(const TensorView& x, int64_t head, int64_t token, int64_t c) {
  const int64_t i = head * x.stride[0] + token * x.stride[1] + c;
  return x.dtype == DType::f32 ? x.as<float>()[i] : float{x.as<BFloat16>()[i]};
}

// Brute force over token pairs: group g's token i from the end meets group u's token i.
std::vector<double> naive_scores(const TensorView& q, const TensorView& k, int64_t head,
                                 int64_t block, int64_t stride, double sm_scale) {
  const int64_t nq = q.shape[1], nk = k.shape[1], d = q.shape[2];
  const int64_t q_blocks = (nq + block - 1) / block, k_blocks = (nk + block - 1) / block;
  std::vector<double> out(static_cast<size_t>(q_blocks * k_blocks));
  for (int64_t g = 0; g * stride < nq; ++g) {
    const int64_t q_size = std::min(stride, nq - g * stride), qb = g * stride / block;
    std::vector<double> z, mass(static_cast<size_t>(k_blocks));
    for (int64_t u = 0; u * stride < nk; ++u) {
      const int64_t pairs = std::min(q_size, std::min(stride, nk - u * stride));
      double sum = 0.0;
      for (int64_t i = 0; i < pairs; ++i)
        for (int64_t c = 0; c < d; ++c)
          sum += element(q, head, g * stride + q_size - 1 - i, c) *
                 element(k, head, u * stride + i, c);
      z.push_back(sum * sm_scale / static_cast<double>(pairs));
    }
    const double top = *std::max_element(z.begin(), z.end());
    double total = 0.0;
    for (size_t u = 0; u < z.size(); ++u) {
      mass[static_cast<int64_t>(u) * stride / block] += std::exp(z[u] - top);
      total += std::exp(z[u] - top);
    }
    const int64_t in_block = std::min(block, nq - qb * block);
    const int64_t rows = (in_block + stride - 1) / stride;
    for (int64_t b = 0; b < k_blocks; ++b)
      out[qb * k_blocks + b] += mass[b] / total / static_cast<double>(rows);
  }
  return out;
}

TEST_P(CpuSelect, AntidiagonalScoresOverManyChunks) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (const auto& [nq, nk, stride] : {std::array<int64_t, 3>{1501, 1030, 4}, {640, 2051, 2}}) {
      const int64_t block = 64, d = 24;
      const Tokens q = make_tokens(dtype, nq, d, "q"), k = make_tokens(dtype, nk, d, "k");
      const BlockLayout ql = BlockLayout::uniform(nq, block), kl = BlockLayout::uniform(nk, block);
      const std::vector<int32_t> heads = {1, 0};
      std::vector<float> first;
      for (int threads : {1, 2, 3}) {
        set_num_threads(threads);
        const Tensor out(DType::f32, {2, ql.num_blocks, kl.num_blocks});
        backend_->antidiagonal_scores(q.view, k.view, heads, ql, kl, 0.5f,
                                      static_cast<int32_t>(stride), false, out);
        const std::vector<float> values(out.as<float>(), out.as<float>() + out.numel());
        if (threads == 1) first = values;
        ASSERT_EQ(values, first) << threads << " threads";
      }
      for (int64_t h = 0; h < 2; ++h) {
        const std::vector<double> expected =
            naive_scores(q.view, k.view, heads[h], block, stride, 0.5);
        for (size_t i = 0; i < expected.size(); ++i)
          ASSERT_NEAR(first[h * expected.size() + i], expected[i], 1e-5 * expected[i] + 1e-9)
              << dtype_name(dtype) << " head " << heads[h] << " element " << i;
      }
    }
}

// A NaN may have any payload; its low bits must not make a number of it.
TEST_P(CpuSelect, AntidiagonalScoresKeepEveryNan) {
  const int64_t n = 64;
  const BlockLayout layout = BlockLayout::uniform(n, 32);
  const std::vector<int32_t> head = {0};
  for (const uint32_t nan : {0x7fc00000u, 0x7fc00001u, 0xffc001ffu}) {
    const Tokens q = make_tokens(DType::f32, n, 24, "q"), k = make_tokens(DType::f32, n, 24, "k");
    std::memcpy(k.view.data, &nan, sizeof nan);
    const Tensor out(DType::f32, {1, 2, 2});
    backend_->antidiagonal_scores(q.view, k.view, head, layout, layout, 0.5f, 4, false, out);
    for (int i = 0; i < 4; ++i) EXPECT_TRUE(std::isnan(out.as<float>()[i])) << nan << " " << i;
  }
}

TEST_P(CpuSelect, TopPOfLongRowsIsTheShortestPrefix) {
  constexpr int32_t kBlocks = 5000;
  const Tensor scores(DType::f32, {4, 3, kBlocks});
  fill_hash("scores", 0.0, 1.0, std::span(scores.as<float>(), static_cast<size_t>(scores.numel())));
  for (int64_t i = 0; i < scores.numel(); ++i) {
    float& s = scores.as<float>()[i];
    s = std::exp(8.0f * s);
    if (i % 7 == 0) s = 1.0f;  // ties
  }
  const std::vector<float> top_p = {0.0f, 0.3f, 0.9f, 0.999f};
  BlockMask mask(4, 3, kBlocks);
  backend_->select_top_p(scores, top_p, mask);
  for (int64_t h = 0; h < 4; ++h)
    for (int32_t qb = 0; qb < 3; ++qb) {
      const float* row = scores.as<float>() + (h * 3 + qb) * kBlocks;
      std::vector<int32_t> order(kBlocks);
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return row[a] > row[b]; });
      const double total = std::accumulate(row, row + kBlocks, 0.0);
      double kept = 0.0, last = 0.0;
      int32_t n = 0;
      while (n < kBlocks && mask.get(h, qb, order[n])) kept += last = row[order[n++]];
      for (int32_t i = n; i < kBlocks; ++i)
        ASSERT_FALSE(mask.get(h, qb, order[i])) << "no prefix of the ranking: head " << h;
      ASSERT_GE(n, 1);
      EXPECT_GE(kept, double{top_p[h]} * total * (1 - 1e-12));
      if (n > 1) {
        EXPECT_LT(kept - last, double{top_p[h]} * total);
      }
    }
}

}  // namespace
}  // namespace lacuna
