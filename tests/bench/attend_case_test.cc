// SPDX-License-Identifier: Apache-2.0
// The made-up case and its error, and the oneDNN baseline, against the kernels they are to judge.
#include "bench/attend_case.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "bench/onednn_attend.h"
#include "lacuna/backend/cpu/attend.h"
#include "lacuna/core/error.h"

namespace lacuna::bench {
namespace {

constexpr int kRows = 8;

TEST(AttendCase, ErrorOfAKernelIsSmallAndOfADamagedRowIsNot) {
  AttendData data({1, 256, 64});
  AttendParams p = data.params(128);
  std::vector<float> lse(256);
  p.lse = lse.data();
  const KeptBlocks kept = make_kept("window", 2, 1, 0.5);
  EXPECT_EQ(kept.density, 0.5);
  p.mask = kept.mask.words();
  cpu::attend(p, cpu::active_isa());
  const SampledError error = sampled_error(data, p, kRows);
  EXPECT_LT(error.rel_l2, 1e-6);
  EXPECT_LT(error.lse, 1e-5);
  lse[13] += 1.0f;  // the first sampled row
  data.out[13 * 64] += 1.0f;
  const SampledError damaged = sampled_error(data, p, kRows);
  EXPECT_GT(damaged.rel_l2, 0.1);
  EXPECT_NEAR(damaged.lse, 1.0, 1e-4);
}

TEST(AttendCase, TwoLevelsDropFourFifths) {
  AttendData data({1, 1280, 64, false, Logits::two_level});
  AttendParams p = data.params(128);
  int64_t pairs = 0;
  p.pv_pairs = &pairs;
  p.skip = SkipKind::running_max;
  const float lambda = 3e-4f;
  p.skip_param = &lambda;
  cpu::attend(p, cpu::active_isa());
  EXPECT_EQ(pairs, 1280 * 256);
  EXPECT_LT(sampled_error(data, p, kRows).rel_l2, 5e-6);  // all keys count: little was lost
}

TEST(AttendCase, FlopsCountBothProducts) {
  AttendData data({2, 256, 64});
  const AttendParams p = data.params(128);
  EXPECT_EQ(attend_flops(p, 1, 1), 4.0 * 2 * 256 * 256 * 64);
  EXPECT_EQ(attend_flops(p, 0.5, 0.25), 1.5 * 2 * 256 * 256 * 64);
}

TEST(OneDnnAttention, ComputesTheSame) {
  AttendData data({1, 256, 64});
  const AttendParams p = data.params(128);
  OneDnnAttention baseline(p);
  std::fill(data.out.begin(), data.out.end(), 0.0f);
  baseline.run();
  EXPECT_LT(sampled_error(data, p, kRows).rel_l2, 1e-6);
  EXPECT_NE(baseline.description().find("queries a tile"), std::string::npos);
}

TEST(OneDnnAttention, Bf16WhereTheMachineHasIt) {
  AttendData data({1, 256, 64, true});
  const AttendParams p = data.params(128);
  if (cpu::active_isa() < cpu::Isa::avx512_bf16) {
    EXPECT_THROW(OneDnnAttention{p}, Error);
    return;
  }
  OneDnnAttention(p).run();
  data.read_back();
  EXPECT_LT(sampled_error(data, p, kRows).rel_l2, 1e-2);
}

TEST(OneDnnAttention, RefusesSeveralHeads) {
  AttendData data({2, 256, 64});
  EXPECT_THROW(OneDnnAttention(data.params(128)), Error);
}

}  // namespace
}  // namespace lacuna::bench
