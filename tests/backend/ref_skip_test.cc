// SPDX-License-Identifier: Apache-2.0
// Skip rules of the reference attention: the formulas, their certificates, their bookkeeping.
#include <gtest/gtest.h>

#include <bit>

#include "lacuna/backend/ref/ref_backend.h"
#include "lacuna/backend/ref/skip_rule.h"
#include "tests/support/attend_case.h"

namespace lacuna::test {
namespace {

using ref::kNegInf;
using ref::RowState;
using ref::SkipRule;

TEST(SkipRule, RunningMaxComparesWithLnLambda) {
  const RowState row{.m = 2.0, .l = 5.0};
  EXPECT_TRUE(ref::running_max_skips(row, 2.0 + std::log(0.1) - 1e-9, 0.1));
  EXPECT_FALSE(ref::running_max_skips(row, 2.0 + std::log(0.1) + 1e-9, 0.1));
  EXPECT_FALSE(ref::running_max_skips(row, -1e300, 0.0));  // lambda 0 skips nothing
}

TEST(SkipRule, RunningLseComparesWithLambda) {
  const RowState row{.m = 2.0, .l = std::exp(3.0)};  // lse = 5
  EXPECT_TRUE(ref::running_lse_skips(row, -1.0 - 1e-9, -6.0));
  EXPECT_FALSE(ref::running_lse_skips(row, -1.0 + 1e-9, -6.0));
}

// r = 0.8: the bound may reach a quarter of what is kept. n e^(mhat - m) = 4 e^(ln 0.25) = 1.
TEST(SkipRule, RecallSpendsItsBudget) {
  const double mhat = std::log(0.25);
  RowState row{.m = 0.0, .l = 8.5};  // budget 2.125: two such pieces, not three
  const SkipRule rule{SkipKind::recall, 0.8, 1.0};
  EXPECT_TRUE(ref::votes_to_skip(rule, row, mhat, 4));
  ref::on_skip(rule, row, mhat, 4);
  EXPECT_DOUBLE_EQ(row.dropped, 1.0);
  EXPECT_TRUE(ref::votes_to_skip(rule, row, mhat, 4));
  ref::on_skip(rule, row, mhat, 4);
  EXPECT_FALSE(ref::votes_to_skip(rule, row, mhat, 4));
  // kappa halves the bound of a piece: 2 + 0.5 > 2.125 still, 2 + 0.1 not.
  EXPECT_FALSE(ref::votes_to_skip({SkipKind::recall, 0.8, 0.5}, row, mhat, 4));
  EXPECT_TRUE(ref::votes_to_skip({SkipKind::recall, 0.8, 0.1}, row, mhat, 4));
}

TEST(SkipRule, KeepingRescalesSumAndBound) {
  RowState row{.m = 0.0, .l = 4.0, .dropped = 2.0};
  const double logits[] = {std::log(2.0), 0.0, kNegInf};
  ref::on_keep(row, logits, 3, std::log(2.0));
  EXPECT_DOUBLE_EQ(row.m, std::log(2.0));
  EXPECT_DOUBLE_EQ(row.l, 2.0 + 1.0 + 0.5);
  EXPECT_DOUBLE_EQ(row.dropped, 1.0);
}

TEST(SkipRule, MaskedRowsAgreeAndFirstFiniteLogitsAreKept) {
  const RowState nothing;
  for (SkipKind kind : {SkipKind::running_max, SkipKind::running_lse, SkipKind::recall}) {
    const SkipRule rule{kind, 0.5, 1.0};
    EXPECT_TRUE(ref::votes_to_skip(rule, nothing, kNegInf, 8));
    EXPECT_FALSE(ref::votes_to_skip(rule, nothing, -1e30, 8));
    RowState row;
    ref::on_skip(rule, row, kNegInf, 8);
    EXPECT_EQ(row.dropped, 0.0);
  }
}

// One row, three pieces of one key with logits 0, -1, -3.
struct OneRow {
  std::vector<float> k{0.0f, -1.0f, -3.0f}, v{1.0f, 10.0f, 100.0f};
  float q = 1.0f, out = 0.0f, lse = 0.0f, mass[3] = {};
  uint64_t bits = ~uint64_t{0};
  int64_t pairs = -1;

  void run(SkipKind kind, float param) {
    AttendParams p;
    p.q = &q, p.k = k.data(), p.v = v.data(), p.out = &out;
    p.k_token_stride = p.v_token_stride = p.q_token_stride = p.out_token_stride = 1;
    p.num_heads = 1, p.q_len = 1, p.k_len = 3, p.head_dim = 1, p.sm_scale = 1.0f;
    p.block_q = p.block_k = 1, p.num_q_blocks = 1, p.num_k_blocks = 3;
    p.skip = kind, p.skip_param = &param;
    p.lse = &lse, p.block_mass = mass, p.skip_bits = &bits, p.pv_pairs = &pairs;
    make_ref_backend()->attend(p);
  }
};

TEST(RefSkip, HandWorkedRunningMax) {
  OneRow row;
  row.run(SkipKind::running_max, 0.1f);  // ln 0.1 = -2.3: only the last goes
  const double e = std::exp(-1.0);
  EXPECT_NEAR(row.out, (1.0 + 10.0 * e) / (1.0 + e), 1e-6);
  EXPECT_NEAR(row.lse, std::log(1.0 + e), 1e-6);
  EXPECT_NEAR(row.mass[1], e / (1.0 + e), 1e-6);
  EXPECT_EQ(row.mass[2], 0.0f);
  EXPECT_EQ(row.bits, 4u);
  EXPECT_EQ(row.pairs, 2);
}

TEST(RefSkip, HandWorkedRunningLse) {
  OneRow row;
  row.run(SkipKind::running_lse, -3.2f);  // lse = 0 then ln(1 + e^-1) = 0.313: -3.313 < -3.2
  EXPECT_EQ(row.bits, 4u);
  row.run(SkipKind::running_lse, -3.4f);
  EXPECT_EQ(row.bits, 0u);
}

TEST(RefSkip, SkippedMaximumIsNeverMerged) {
  OneRow row;
  row.k = {0.0f, 0.5f, 0.4f};
  // lambda = e: 0.5 < 1 and 0.4 < 1 are skipped although they exceed the maximum.
  row.run(SkipKind::running_max, 2.718f);
  EXPECT_EQ(row.bits, 6u);
  EXPECT_EQ(row.out, 1.0f);
  EXPECT_EQ(row.lse, 0.0f);
}

TEST(RefSkip, OneDisagreeingRowKeepsThePiece) {
  // Rows 0..64: the vote is over 64 rows, so row 64 stands alone. Only row 64 wants key 1.
  std::vector<float> q(65, 0.0f), k{0.0f, 1.0f}, v{1.0f, 2.0f}, out(65);
  for (int want : {64, 10}) {
    std::fill(q.begin(), q.end(), -5.0f);
    q[want] = 5.0f;
    float param = 0.1f;
    int64_t pairs = 0;
    AttendParams p;
    p.q = q.data(), p.k = k.data(), p.v = v.data(), p.out = out.data();
    p.k_token_stride = p.v_token_stride = p.q_token_stride = p.out_token_stride = 1;
    p.num_heads = 1, p.q_len = 65, p.k_len = 2, p.head_dim = 1, p.sm_scale = 1.0f;
    p.block_q = 128, p.block_k = 1, p.num_q_blocks = 1, p.num_k_blocks = 2;
    p.skip = SkipKind::running_max, p.skip_param = &param, p.pv_pairs = &pairs;
    make_ref_backend()->attend(p);
    EXPECT_EQ(pairs, want == 64 ? 64 + 2 : 64 * 2 + 1);
  }
}

AttendSpec skip_spec(Pattern pattern, uint64_t seed) {
  return {.q_len = 256,
          .k_len = 500,
          .block_q = 128,
          .block_k = 32,
          .density = 0.999999,
          .visit = VisitOrder::coarse_to_fine,
          .pattern = pattern,
          .sharpness = 3.0,
          .seed = seed};
}

TEST(RefSkip, ParametersThatSkipNothing) {
  const auto backend = make_ref_backend();
  for (Pattern pattern : {Pattern::noise, Pattern::structured}) {
    AttendCase c(skip_spec(pattern, 1));
    const AttendResult dense = c.run(*backend);
    const std::pair<SkipKind, float> rules[] = {{SkipKind::running_max, 0.0f},
                                                {SkipKind::running_max, 1e-30f},
                                                {SkipKind::running_lse, -1e30f},
                                                {SkipKind::recall, 1.0f}};
    for (const auto& [kind, param] : rules) {
      c.set_skip(kind, param);
      const AttendResult r = c.run(*backend);
      EXPECT_EQ(r.out, dense.out) << c.spec().describe();
      EXPECT_EQ(r.pv_pairs, dense.pv_pairs) << c.spec().describe();
      for (uint64_t bits : r.skip_bits) EXPECT_EQ(bits, 0u) << c.spec().describe();
    }
  }
}

// The certificate: with kappa = 1 every row keeps at least r of its mass.
TEST(RefSkip, RecallRuleKeepsItsPromiseOnEveryRow) {
  const auto backend = make_ref_backend();
  int64_t skipped = 0;
  for (Pattern pattern : {Pattern::noise, Pattern::structured})
    for (uint64_t seed : {1, 2, 3})
      for (float r : {0.5f, 0.8f, 0.95f, 0.99f}) {
        AttendCase c(skip_spec(pattern, seed));
        const AttendResult dense = c.run(*backend);
        c.set_skip(SkipKind::recall, r);
        const AttendResult kept = c.run(*backend);
        for (size_t row = 0; row < kept.lse.size(); ++row)
          ASSERT_GE(std::exp(double{kept.lse[row]} - dense.lse[row]), r - 1e-6)
              << c.spec().describe() << " row " << row;
        skipped += dense.pv_pairs[0] - kept.pv_pairs[0];
      }
  EXPECT_GT(skipped, 0) << "the rule never fired: the test shows nothing";
}

// recall >= 1 / (1 + e^lambda k_len) for the running-lse rule.
TEST(RefSkip, RunningLseBound) {
  const auto backend = make_ref_backend();
  for (float lambda : {-3.0f, -6.0f, -8.0f}) {
    AttendCase c(skip_spec(Pattern::structured, 4));
    const AttendResult dense = c.run(*backend);
    c.set_skip(SkipKind::running_lse, lambda);
    const AttendResult kept = c.run(*backend);
    EXPECT_LT(kept.pv_pairs[0], dense.pv_pairs[0]);
    for (size_t row = 0; row < kept.lse.size(); ++row)
      ASSERT_GE(std::exp(double{kept.lse[row]} - dense.lse[row]),
                1.0 / (1.0 + std::exp(lambda) * 500) - 1e-6);
  }
}

// Dropping the blocks named by skip_bits up front gives the very same result, and pv_pairs is
// what the kept pieces add up to.
TEST(RefSkip, SkipBitsAndPairsDescribeWhatWasDone) {
  const auto backend = make_ref_backend();
  for (bool explicit_blocks : {false, true}) {
    AttendSpec spec = skip_spec(Pattern::structured, 6);
    spec.block_q = 64;  // one vote per query block, one piece per key block
    spec.explicit_blocks = explicit_blocks;
    if (explicit_blocks) spec.block_q = 40;
    AttendCase c(spec);
    c.set_skip(SkipKind::running_max, 0.2f);
    const AttendResult r = c.run(*backend);
    const int32_t nq = c.q_layout().num_blocks, nk = c.k_layout().num_blocks;
    BlockMask rest = c.mask();
    int64_t dropped = 0;
    std::vector<int64_t> most(2, 0);
    for (int32_t h = 0; h < 2; ++h)
      for (int32_t qb = 0; qb < nq; ++qb)
        for (int32_t kb = 0; kb < nk; ++kb) {
          const int64_t size = c.q_layout().size(h, qb) * c.k_layout().size(h, kb);
          const uint64_t word = r.skip_bits[(h * nq + qb) * ((nk + 63) / 64) + kb / 64];
          const bool skipped = (word >> (kb % 64)) & 1;
          const float mass = r.block_mass[(h * nq + qb) * nk + kb];
          if (skipped) {
            EXPECT_GT(size, 0) << "bit of an empty block";
            EXPECT_EQ(mass, 0.0f);
            rest.clear(h, qb, kb);
            ++dropped;
          } else {
            most[h] += size;
            if (size > 0 && !explicit_blocks) {
              EXPECT_GT(mass, 0.0f);
            }
          }
        }
    EXPECT_GT(dropped, 0);
    for (int32_t h = 0; h < 2; ++h) {
      // Query blocks of several tiles may have skipped a block for some of them only.
      if (explicit_blocks) {
        EXPECT_LE(r.pv_pairs[h], most[h]);
      } else {
        EXPECT_EQ(r.pv_pairs[h], most[h]);
      }
    }
    if (explicit_blocks) continue;
    c.set_skip(SkipKind::none, 0.0f);
    c.set_mask(rest);
    const AttendResult again = c.run(*backend);
    const int64_t shape[] = {2, 256, 64};
    EXPECT_TRUE(close(again.out, r.out, rounding(DType::f32), shape, c.spec().describe()));
  }
}

// Key blocks longer than kVoteKeys are judged piece by piece.
TEST(RefSkip, PiecesOfOneBlockAreJudgedApart) {
  std::vector<float> k(300, 0.0f), v(300, 1.0f);
  std::fill(k.begin() + 128, k.begin() + 256, -20.0f);  // second piece of 128, 128, 44
  float q = 1.0f, out = 0.0f, param = 0.01f;
  uint64_t bits = 0;
  int64_t pairs = 0;
  AttendParams p;
  p.q = &q, p.k = k.data(), p.v = v.data(), p.out = &out;
  p.k_token_stride = p.v_token_stride = p.q_token_stride = p.out_token_stride = 1;
  p.num_heads = 1, p.q_len = 1, p.k_len = 300, p.head_dim = 1, p.sm_scale = 1.0f;
  p.block_q = 1, p.block_k = 300, p.num_q_blocks = p.num_k_blocks = 1;
  p.skip = SkipKind::running_max, p.skip_param = &param;
  p.skip_bits = &bits, p.pv_pairs = &pairs;
  make_ref_backend()->attend(p);
  EXPECT_EQ(pairs, 300 - 128);
  EXPECT_EQ(bits, 0u);
}

TEST(RefSkip, MaskedPiecesGoButNeverTheFirst) {
  const auto backend = make_ref_backend();
  // Keys 0..31 and 64..95 are masked. lambda is so small that only masked pieces can go.
  for (SkipKind kind : {SkipKind::running_max, SkipKind::running_lse, SkipKind::recall}) {
    AttendCase c({.heads = 1, .q_len = 70, .k_len = 96, .block_k = 32, .bias = Bias::per_key});
    for (int64_t j = 0; j < 96; ++j)
      if (j / 32 != 1) c.set_bias(j, -std::numeric_limits<float>::infinity());
    c.set_skip(kind, kind == SkipKind::recall        ? 1.0f
                     : kind == SkipKind::running_max ? 0.0f
                                                     : -1e30f);
    const AttendResult r = c.run(*backend);
    EXPECT_EQ(r.skip_bits, std::vector<uint64_t>{4}) << static_cast<int>(kind);
    EXPECT_EQ(r.pv_pairs, std::vector<int64_t>{70 * 64}) << static_cast<int>(kind);
    for (float x : r.lse) EXPECT_TRUE(std::isfinite(x));
  }
}

TEST(RefSkip, ParametersAreByCallIndexAndBitsByTensorHead) {
  const auto backend = make_ref_backend();
  AttendSpec spec = skip_spec(Pattern::structured, 8);
  spec.heads = 3;
  spec.head_ids = {2, 0};
  AttendCase c(spec);
  AttendParams p = c.params();
  std::vector<float> out(3 * 256 * 64);
  const float params[] = {0.5f, 0.0f};  // head 2 skips, head 0 does not
  const int64_t words = (c.k_layout().num_blocks + 63) / 64;
  std::vector<uint64_t> bits(static_cast<size_t>(3 * c.q_layout().num_blocks * words), 7);
  std::vector<int64_t> pairs(2);
  p.out = out.data(), p.out_head_stride = 256 * 64, p.out_token_stride = 64;
  p.skip = SkipKind::running_max, p.skip_param = params;
  p.skip_bits = bits.data(), p.pv_pairs = pairs.data();
  backend->attend(p);
  const auto count = [&](int head) {
    int total = 0;
    for (int64_t i = 0; i < c.q_layout().num_blocks * words; ++i)
      total += std::popcount(bits[head * c.q_layout().num_blocks * words + i]);
    return total;
  };
  EXPECT_EQ(count(0), 0);
  EXPECT_EQ(bits[c.q_layout().num_blocks * words], 7u) << "head 1 was not asked for";
  EXPECT_GT(count(2), 0);
  EXPECT_LT(pairs[0], pairs[1]);
}

}  // namespace
}  // namespace lacuna::test
