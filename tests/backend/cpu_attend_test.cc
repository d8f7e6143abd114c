// SPDX-License-Identifier: Apache-2.0
// CPU attention at every instruction set level of this machine, and the f32 kernel on sixteen plain
// lanes, against a plain double-precision attention, on buffers whose unused elements are NaN.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "lacuna/backend/cpu/attend.h"
#include "lacuna/backend/cpu/attend_run.h"
#include "lacuna/backend/cpu/kernel_ops.h"
#include "lacuna/core/error.h"
#include "lacuna/core/threads.h"
#include "tests/backend/cpu_attend_truth.h"
#include "tests/backend/kernel_vec_lanes16.h"
#include "tests/support/tile_unit.h"

namespace lacuna::cpu {
namespace {

double out_error(const Call& c, const Truth& t) {
  double diff = 0, norm = 0;
  for (int64_t call = 0; call < c.p.num_heads; ++call) {
    const int64_t h = c.head_ids.empty() ? call : c.head_ids[static_cast<size_t>(call)];
    for (int64_t i = 0; i < c.p.q_len; ++i)
      for (int64_t d = 0; d < c.p.head_dim; ++d) {
        const double want = t.out[static_cast<size_t>((h * c.p.q_len + i) * c.p.head_dim + d)];
        const double e = double{c.out.get(h, i, d)} - want;
        diff += e * e;
        norm += want * want;
      }
  }
  return norm == 0 ? std::sqrt(diff) : std::sqrt(diff / norm);
}

struct Tolerance {
  double out, lse;
};
// Laws: f32 3e-6; bf16 2.2e-3 over many keys, where the rounding of P averages out.
Tolerance tolerance(bool bf16) {
  return bf16 ? Tolerance{2.8e-3, 2e-3} : Tolerance{3e-6, 1e-5};
}

// One way to run a call: attend() at a level, or a kernel that attend() never chooses.
struct Way {
  const char* name;
  Isa needs;
  const KernelOps* ops = nullptr;
};

void run(Call& c, const Way& way) {
  if (way.ops != nullptr) {
    run_attend(c.params(), *way.ops);
  } else {
    attend(c.params(), way.needs);
  }
  c.out.read_back();
}

// Runs and compares everything the call asks for.
Truth expect_truth(Call& c, const Way& way, const std::string& what) {
  SCOPED_TRACE(what);
  const Truth t = truth(c);
  run(c, way);
  const Tolerance tol = tolerance(c.q.bf16);
  EXPECT_LE(out_error(c, t), tol.out);
  for (int64_t call = 0; call < c.p.num_heads; ++call) {
    const int64_t h = c.head_ids.empty() ? call : c.head_ids[static_cast<size_t>(call)];
    for (int64_t i = 0; i < c.p.q_len && !c.lse.empty(); ++i) {
      const size_t at = static_cast<size_t>(h * c.p.q_len + i);
      if (t.lse[at] == -kInf) {
        EXPECT_EQ(c.lse[at], -kInf);
      } else {
        // The law is for logits of order one; f32 itself is coarser at lse in the thousands.
        EXPECT_NEAR(c.lse[at], t.lse[at], tol.lse * std::max(1.0, std::abs(t.lse[at]) / 16))
            << "row " << i;
      }
    }
    const int64_t words = (c.p.num_k_blocks + 63) / 64;
    for (int64_t row = h * c.p.num_q_blocks; row < (h + 1) * c.p.num_q_blocks; ++row) {
      for (int64_t kb = 0; kb < c.p.num_k_blocks && !c.mass.empty(); ++kb) {
        const size_t at = static_cast<size_t>(row * c.p.num_k_blocks + kb);
        EXPECT_NEAR(c.mass[at], t.mass[at], c.q.bf16 ? 1e-3 : 3e-6)
            << "row " << row << " block " << kb;
      }
      for (int64_t w = 0; w < words && !c.bits.empty(); ++w)
        EXPECT_EQ(c.bits[static_cast<size_t>(row * words + w)],
                  t.bits[static_cast<size_t>(row * words + w)]);
    }
    if (!c.pv_pairs.empty()) {
      EXPECT_EQ(c.pv_pairs[static_cast<size_t>(call)], t.pairs[static_cast<size_t>(call)]);
    }
  }
  return t;
}

class CpuAttend : public testing::TestWithParam<Way> {
 protected:
  void SetUp() override {
    if (GetParam().needs > test::with_tile_unit(machine_isa()))
      GTEST_SKIP() << "this machine lacks " << isa_name(GetParam().needs);
  }
  // f32 runs on AMX machines as on AVX-512 ones.
  static std::vector<bool> dtypes() {
    return tiles() ? std::vector<bool>{true} : std::vector<bool>{false, true};
  }
  static bool tiles() { return GetParam().needs == Isa::amx; }
};

INSTANTIATE_TEST_SUITE_P(Kernels, CpuAttend,
                         testing::Values(Way{"avx2", Isa::avx2}, Way{"avx512", Isa::avx512},
                                         Way{"avx512_bf16", Isa::avx512_bf16},
                                         Way{test::amx_name(), Isa::amx},
                                         Way{"plain_lanes", Isa::avx2, &kAttendLanes16}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(CpuAttend, DenseLengthsAndHeadDims) {
  constexpr int64_t kLengths[][2] = {{1, 1},  {1, 300},  {5, 3},    {16, 129}, {17, 12},
                                     {33, 7}, {64, 128}, {65, 255}, {130, 61}, {200, 257}};
  for (const bool bf16 : dtypes())
    for (const int64_t dim : {64, 128})
      for (const auto& n : kLengths) {
        Call c(2, n[0], n[1], dim, bf16, static_cast<uint64_t>(n[0] * 1000 + n[1]));
        c.lse.assign(static_cast<size_t>(2 * n[0]), kNan);
        expect_truth(c, GetParam(),
                     testing::PrintToString(std::vector<int64_t>{n[0], n[1], dim, bf16}));
      }
}

TEST_P(CpuAttend, GenericHeadDims) {
  for (const bool bf16 : dtypes())
    for (const int64_t dim : {1, 2, 7, 12, 31, 32, 80, 96, 256, 384, 1024}) {
      Call c(1, 70, 141, dim, bf16, static_cast<uint64_t>(dim));
      c.want_everything();
      expect_truth(c, GetParam(), "head_dim " + std::to_string(dim));
    }
}

TEST_P(CpuAttend, SparseUniformBlocks) {
  for (const bool bf16 : dtypes())
    for (const int32_t block : {16, 64, 100, 128, 300})
      for (const VisitOrder order : {VisitOrder::ascending, VisitOrder::coarse_to_fine}) {
        Call c(3, 233, 450, 64, bf16, 7);
        c.head_ids = {2, 0};
        c.p.num_heads = 2;
        c.uniform(block, block);
        c.keep_random(0.4, order, static_cast<uint64_t>(block));
        c.want_everything();
        expect_truth(c, GetParam(), "block " + std::to_string(block));
        // Head 1 was not asked for.
        for (int64_t i = 0; i < 233; ++i) ASSERT_TRUE(std::isnan(c.out.get(1, i, 0)));
      }
}

TEST_P(CpuAttend, WritesOnlyItsElements) {
  for (const bool bf16 : dtypes()) {
    Call c(2, 67, 40, 64, bf16);
    run(c, GetParam());
    for (int64_t h = 0; h < 2; ++h)
      for (int64_t i = 0; i < 67; ++i)
        for (int64_t gap = 64; gap < c.out.token_stride; ++gap)
          ASSERT_TRUE(std::isnan(c.out.get(h, i, gap)));
    for (size_t i = c.out.values.size() - 5; i < c.out.values.size(); ++i)
      ASSERT_TRUE(std::isnan(c.out.values[i]));
  }
}

TEST_P(CpuAttend, ClustersWithEmptyBlocksAndMass) {
  for (const bool bf16 : dtypes())
    for (const uint64_t seed : {1u, 2u, 3u}) {
      Call c(2, 250, 450, 128, bf16, seed);
      c.clusters(9, 14, seed);
      c.keep_random(0.5, VisitOrder::ascending, seed + 10);
      c.want_everything();
      expect_truth(c, GetParam(), "clusters " + std::to_string(seed));
    }
}

TEST_P(CpuAttend, DenseMassSumsToOne) {
  Call c(1, 150, 500, 64, dtypes()[0]);
  c.uniform(64, 100);
  c.want_everything();
  expect_truth(c, GetParam(), "dense mass");
  for (int row = 0; row < c.p.num_q_blocks; ++row) {
    double sum = 0;
    for (int kb = 0; kb < c.p.num_k_blocks; ++kb)
      sum += c.mass[static_cast<size_t>(row * c.p.num_k_blocks + kb)];
    EXPECT_NEAR(sum, 1.0, 1e-5);
  }
}

TEST_P(CpuAttend, KeyBias) {
  for (const bool bf16 : dtypes()) {
    Call c(2, 90, 300, 128, bf16);
    Random random(5);
    for (int j = 0; j < 600; ++j) c.bias.push_back(j % 7 == 0 ? -kInf : 2 * random.normal());
    c.p.bias_head_stride = 300;
    c.want_everything();
    expect_truth(c, GetParam(), "bias per head");
    c.p.bias_head_stride = 0;
    expect_truth(c, GetParam(), "bias shared");
  }
}

TEST_P(CpuAttend, PairBias) {
  for (const bool bf16 : dtypes()) {
    Call c(2, 77, 190, 64, bf16);
    Random random(6);
    for (int j = 0; j < 2 * 77 * 190; ++j) c.bias.push_back(j % 11 == 3 ? -kInf : random.normal());
    c.p.bias_head_stride = 77 * 190;
    c.p.bias_q_stride = 190;
    c.p.sm_scale = 1.0f / 16;
    c.want_everything();
    expect_truth(c, GetParam(), "bias per pair");
  }
}

TEST_P(CpuAttend, RowsWithoutKeys) {
  for (const bool bf16 : dtypes()) {
    // Everything masked by the bias.
    Call masked(1, 70, 130, 64, bf16);
    masked.bias.assign(130, -kInf);
    masked.want_everything();
    expect_truth(masked, GetParam(), "all -inf");
    for (int64_t i = 0; i < 70; ++i) ASSERT_EQ(masked.out.get(0, i, 5), 0.0f);
    // Rows that keep nothing.
    Call empty(1, 300, 200, 128, bf16);
    empty.mask = BlockMask(1, 3, 2);
    empty.mask.set(0, 1, 1);
    empty.want_everything();
    expect_truth(empty, GetParam(), "empty rows");
    ASSERT_EQ(empty.out.get(0, 0, 0), 0.0f);
    // No keys at all.
    Call none(1, 20, 0, 64, bf16);
    none.lse.assign(20, kNan);
    expect_truth(none, GetParam(), "k_len 0");
    ASSERT_EQ(none.out.get(0, 19, 63), 0.0f);
  }
}

TEST_P(CpuAttend, LowestFiniteBiasIsAPlainMean) {
  Call c(1, 3, 40, 64, dtypes()[0]);
  c.bias.assign(40, std::numeric_limits<float>::lowest());
  run(c, GetParam());
  for (int64_t d = 0; d < 64; ++d) {
    double mean = 0;
    for (int64_t j = 0; j < 40; ++j) mean += double{c.v.get(0, j, d)} / 40;
    EXPECT_NEAR(c.out.get(0, 1, d), mean, tiles() ? 2e-3 : 1e-6);
  }
}

TEST_P(CpuAttend, ExtremeLogits) {
  // One key of each row's logits is about 1e4 above the rest: its value is the answer.
  for (const bool bf16 : dtypes()) {
    Call c(1, 64, 200, 64, bf16);
    c.q.fill([](int64_t, int64_t i, int64_t d) { return d == i % 64 ? 1024.0f : 0.0f; });
    c.k.fill([](int64_t, int64_t j, int64_t d) {
      return d == j % 64 && j >= 64 && j < 128 ? 80.0f : -0.5f;
    });
    c.want_everything();
    run(c, GetParam());
    for (int64_t i = 0; i < 64; ++i) {
      ASSERT_NEAR(c.lse[static_cast<size_t>(i)], 10240.0f, 0.01);
      for (int64_t d = 0; d < 64; ++d) ASSERT_NEAR(c.out.get(0, i, d), c.v.get(0, 64 + i, d), 1e-5);
    }
  }
}

TEST_P(CpuAttend, LateMaximumAndUnderflow) {
  // Logits rise by thousands from piece to piece, then fall: early sums must vanish, not overflow.
  Call c(1, 10, 512, 64, dtypes()[0]);
  c.q.fill([](int64_t, int64_t, int64_t) { return 1.0f; });
  c.k.fill([](int64_t, int64_t j, int64_t) {
    const int piece = static_cast<int>(j) / 128;
    return piece == 2 ? 300.0f : -300.0f + static_cast<float>(piece);
  });
  c.want_everything();
  expect_truth(c, GetParam(), "late maximum");
}

TEST_P(CpuAttend, DenormalValues) {
  Call c(1, 5, 130, 64, false);
  c.v.fill([](int64_t, int64_t j, int64_t d) { return static_cast<float>(j + d) * 1e-42f; });
  run(c, GetParam());
  const Truth t = truth(c);
  for (int64_t i = 0; i < 5; ++i)
    for (int64_t d = 0; d < 64; ++d)
      ASSERT_NEAR(double{c.out.get(0, i, d)}, t.out[static_cast<size_t>(i * 64 + d)], 5e-43);
}

TEST_P(CpuAttend, NanStaysInItsRow) {
  Call c(1, 40, 100, 64, dtypes()[0]);
  c.q.at(0, 17, 3) = kNan;
  c.q.sync();
  run(c, GetParam());
  for (int64_t i = 0; i < 40; ++i) EXPECT_EQ(std::isnan(c.out.get(0, i, 0)), i == 17);
}

// Logits whose level differs from piece to piece by far more than rounding, so that every vote is
// clear; some rows of some tiles disagree.
void set_levels(Call& c, uint64_t seed) {
  Random random(seed);
  const int64_t pieces = c.p.k_len / 50 + 1;
  std::vector<float> level;
  for (int64_t i = 0; i < pieces * 6; ++i)
    level.push_back(static_cast<float>(random.below(14)) - 10.0f);
  c.q.fill([&](int64_t, int64_t i, int64_t d) { return d == (i / 45) % 6 ? 1.0f : 0.0f; });
  c.k.fill([&](int64_t, int64_t j, int64_t d) {
    return d < 6 ? level[static_cast<size_t>(j / 50 * 6 + d)] + 0.25f * static_cast<float>(j % 2)
                 : 0.0f;
  });
  c.p.sm_scale = 1.0f;
}

TEST_P(CpuAttend, SkipRules) {
  struct Rule {
    SkipKind kind;
    float param, kappa;
  };
  constexpr Rule kRules[] = {
      {SkipKind::running_max, 0.0137f, 1}, {SkipKind::running_max, 0.43f, 1},
      {SkipKind::running_lse, -6.37f, 1},  {SkipKind::running_lse, -9.83f, 1},
      {SkipKind::recall, 0.9031f, 1},      {SkipKind::recall, 0.7f, 0.313f}};
  int64_t dropped = 0;
  for (const bool bf16 : dtypes())
    for (const Rule& rule : kRules)
      for (const int layout : {0, 1, 2, 3}) {
        Call c(1, 200, 700, 64, bf16);
        set_levels(c, static_cast<uint64_t>(layout) + 3);
        if (layout == 0) c.uniform(128, 300);
        if (layout == 1) c.uniform(90, 70);
        if (layout == 2) c.clusters(5, 9, 4);
        if (layout == 3) c.uniform(64, 100);
        if (layout == 3) c.p.order = VisitOrder::coarse_to_fine;  // of all blocks
        if (layout == 1 || layout == 2) c.keep_random(0.8, VisitOrder::coarse_to_fine, 9);
        c.p.skip = rule.kind;
        c.skip_param = {rule.param};
        c.skip_kappa = {rule.kappa};
        c.want_everything();
        const Truth t = expect_truth(c, GetParam(),
                                     "rule " + std::to_string(static_cast<int>(rule.kind)) +
                                         " layout " + std::to_string(layout));
        for (uint64_t word : t.bits) dropped += word != 0;
      }
  EXPECT_GT(dropped, 10);  // the rules did drop something
}

TEST_P(CpuAttend, RecallRuleKeepsItsPromise) {
  Call dense(1, 256, 2048, 64, dtypes()[0], 11);
  Random random(12);
  std::vector<float> level;
  for (int b = 0; b < 16; ++b) level.push_back(3 * random.normal());
  dense.bias.resize(2048);
  for (size_t j = 0; j < 2048; ++j) dense.bias[j] = level[j / 128];
  Call kept = dense;
  dense.want_everything();
  run(dense, GetParam());
  kept.want_everything();
  kept.p.skip = SkipKind::recall;
  kept.skip_param = {0.9f};
  run(kept, GetParam());
  EXPECT_LT(kept.pv_pairs[0], dense.pv_pairs[0]);
  for (size_t i = 0; i < 256; ++i)
    EXPECT_GE(std::exp(double{kept.lse[i]} - double{dense.lse[i]}), 0.9 - 1e-5);
}

TEST_P(CpuAttend, SameBytesForAnyThreadCount) {
  const int before = num_threads();
  for (const bool bf16 : dtypes()) {
    std::vector<std::vector<float>> results;
    for (const int threads : {1, 2, 5}) {
      set_num_threads(threads);
      Call c(2, 500, 1500, 64, bf16);
      c.keep_random(0.5, VisitOrder::ascending, 3);
      c.want_everything();
      run(c, GetParam());
      std::vector<float> all = c.out.values;
      all.insert(all.end(), c.lse.begin(), c.lse.end());
      all.insert(all.end(), c.mass.begin(), c.mass.end());
      results.push_back(all);
    }
    set_num_threads(before);
    for (const auto& r : results)
      EXPECT_EQ(std::memcmp(r.data(), results[0].data(), r.size() * sizeof(float)), 0);
  }
}

TEST_P(CpuAttend, FullMaskEqualsDenseBytes) {
  Call dense(1, 500, 1200, 128, dtypes()[0]);
  Call full = dense;
  full.keep_random(1.1, VisitOrder::ascending, 1);
  run(dense, GetParam());
  run(full, GetParam());
  EXPECT_EQ(std::memcmp(dense.out.values.data(), full.out.values.data(),
                        dense.out.values.size() * sizeof(float)),
            0);
}

TEST(CpuAttendCall, SaysWhyItCannotRun) {
  const auto reason = [](auto change) {
    Call c(1, 100, 100, 64, false);
    c.params();
    change(c.p);
    const std::string why = attend_unsupported(c.p);
    EXPECT_THROW(attend(c.p, Isa::avx2), Error) << why;
    return why;
  };
  EXPECT_NE(reason([](AttendParams& p) { p.head_dim = 0; }).find("head_dim 0"), std::string::npos);
  EXPECT_NE(reason([](AttendParams& p) { p.head_dim = 1025; }).find("1025"), std::string::npos);
  EXPECT_NE(reason([](AttendParams& p) { p.q = nullptr; }).find("null"), std::string::npos);
  EXPECT_NE(reason([](AttendParams& p) { p.v = nullptr; }).find("null"), std::string::npos);
  EXPECT_NE(reason([](AttendParams& p) { p.k_len = -1; }).find("k_len -1"), std::string::npos);
  EXPECT_NE(reason([](AttendParams& p) { p.sm_scale = kNan; }).find("sm_scale"), std::string::npos);
  EXPECT_NE(reason([](AttendParams& p) { p.num_q_blocks = 7; }).find("num_q_blocks 7"),
            std::string::npos);
  EXPECT_NE(reason([](AttendParams& p) { p.block_k = 0; }).find("block_k 0"), std::string::npos);
  EXPECT_NE(reason([](AttendParams& p) { p.skip = SkipKind::recall; }).find("skip_param"),
            std::string::npos);
  static constexpr int32_t kBadOffsets[] = {0, 60, 50, 100};
  EXPECT_NE(reason([](AttendParams& p) {
              p.k_offsets = kBadOffsets;
              p.num_k_blocks = 3;
            }).find("k_offsets"),
            std::string::npos);
  static constexpr uint64_t kPastTheEnd[] = {2};
  EXPECT_NE(reason([](AttendParams& p) { p.mask = kPastTheEnd; }).find("past key block 0"),
            std::string::npos);
}

TEST(CpuAttendCall, NamesItsKernel) {
  Call f(1, 8, 8, 128, false), b(1, 8, 8, 64, true), odd(1, 8, 8, 96, false);
  EXPECT_EQ(attend_kernel_name(f.params(), Isa::avx2), "f32 avx2");
  EXPECT_EQ(attend_kernel_name(f.params(), Isa::avx512), "f32 avx512");
  EXPECT_EQ(attend_kernel_name(f.params(), Isa::avx512_bf16), "f32 avx512");
  EXPECT_EQ(attend_kernel_name(b.params(), Isa::avx2), "bf16 via f32 avx2");
  EXPECT_EQ(attend_kernel_name(b.params(), Isa::avx512), "bf16 via f32 avx512");
  EXPECT_EQ(attend_kernel_name(b.params(), Isa::avx512_bf16), "bf16 avx512_bf16");
  EXPECT_EQ(attend_kernel_name(odd.params(), Isa::avx2), "generic");
}

}  // namespace
}  // namespace lacuna::cpu
