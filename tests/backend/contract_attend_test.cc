// SPDX-License-Identifier: Apache-2.0
// Attention of every backend against the reference.
#include <gtest/gtest.h>

#include "lacuna/core/error.h"
#include "lacuna/core/threads.h"
#include "tests/support/attend_expect.h"
#include "tests/support/backends.h"
#include "tests/support/shapes.h"

namespace lacuna::test {
namespace {

class AttendContract : public BackendTest {
 protected:
  // With and without the optional outputs: they may change the kernel's path.
  void expect_ref(const AttendSpec& spec) {
    const AttendCase c(spec);
    const AttendResult expected = c.run(*ref_);
    expect_same(c, c.run(*backend_), expected);
    const AttendResult bare = c.run(*backend_, false);
    const int64_t shape[] = {spec.heads, spec.q_len, spec.head_dim};
    EXPECT_TRUE(close(bare.out, expected.out, attend_out(spec.dtype, lse_peak(expected)), shape,
                      spec.describe() + " without optional outputs"));
    EXPECT_TRUE(bare.intact) << spec.describe();
  }
  void expect_ref_in_both_dtypes(AttendSpec spec) {
    for (DType dtype : {DType::f32, DType::bf16}) {
      spec.dtype = dtype;
      expect_ref(spec);
    }
  }
};

TEST_P(AttendContract, SharedShapes) {
  for (const AttendSpec& spec : attend_shapes()) expect_ref_in_both_dtypes(spec);
}

// One optional output at a time, of heads out of order: what it is made from has no place then.
TEST_P(AttendContract, EveryOutputAlone) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    const AttendCase c({.dtype = dtype,
                        .heads = 3,
                        .head_ids = {2, 0},
                        .q_len = 70,
                        .k_len = 150,
                        .block_q = 64,
                        .block_k = 32,
                        .density = 0.8});
    const AttendResult expected = c.run(*ref_);
    const double peak = lse_peak(expected);
    const auto with = [&](bool lse, bool mass, bool bits, bool pairs) {
      AttendResult r = c.run_with([&](AttendParams p) {
        if (!lse) p.lse = nullptr;
        if (!mass) p.block_mass = nullptr;
        if (!bits) p.skip_bits = nullptr;
        if (!pairs) p.pv_pairs = nullptr;
        backend_->attend(p);
      });
      const int64_t shape[] = {3, 70, 64};
      EXPECT_TRUE(close(r.out, expected.out, attend_out(dtype, peak), shape, "out"));
      return r;
    };
    EXPECT_TRUE(near_abs(with(true, false, false, false).lse, expected.lse, lse_abs(dtype, peak),
                         c.spec().describe() + " lse"));
    EXPECT_TRUE(near_abs(with(false, true, false, false).block_mass, expected.block_mass,
                         mass_abs(dtype, peak), c.spec().describe() + " block_mass"));
    EXPECT_EQ(with(false, false, true, false).skip_bits, expected.skip_bits);
    EXPECT_EQ(with(false, false, false, true).pv_pairs, expected.pv_pairs);
  }
}

TEST_P(AttendContract, OddHeadDimsRunOrAreRefused) {
  for (const AttendSpec& spec : odd_head_dims()) {
    AttendCase c(spec);
    AttendParams p = c.params();
    std::vector<float> out(static_cast<size_t>(spec.heads * spec.q_len * spec.head_dim));
    p.out = out.data();
    p.out_head_stride = spec.q_len * spec.head_dim, p.out_token_stride = spec.head_dim;
    const std::string why = backend_->unsupported(p);
    if (why.empty()) {
      expect_ref_in_both_dtypes(spec);
      continue;
    }
    EXPECT_NE(why.find(fmt::format("head_dim {}", spec.head_dim)), std::string::npos) << why;
    EXPECT_THROW(backend_->attend(p), Error);
  }
}

TEST_P(AttendContract, RandomShapesOfEveryLengthTo300) {
  for (int64_t len = 1; len <= 300; ++len) {
    AttendSpec spec = random_shape(static_cast<uint64_t>(len));
    if (spec.k_len == spec.q_len) spec.k_len = len;
    spec.q_len = len;
    spec.dtype = len % 2 == 0 ? DType::f32 : DType::bf16;
    expect_ref(spec);
  }
}

TEST_P(AttendContract, SameBitsForOneAndTwoThreads) {
  const int before = num_threads();
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    AttendSpec spec = random_shape(1000 + seed);
    spec.dtype = seed % 2 == 0 ? DType::f32 : DType::bf16;
    AttendCase c(spec);
    if (seed % 3 == 0) c.set_skip(SkipKind::running_max, 0.3f);
    set_num_threads(1);
    const AttendResult one = c.run(*backend_), bare_one = c.run(*backend_, false);
    set_num_threads(2);
    const AttendResult two = c.run(*backend_), bare_two = c.run(*backend_, false);
    set_num_threads(before);
    const auto same_bits = [](const auto& a, const auto& b) {
      return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0;
    };
    EXPECT_TRUE(same_bits(one.out, two.out)) << spec.describe();
    EXPECT_TRUE(same_bits(bare_one.out, bare_two.out)) << spec.describe();
    EXPECT_TRUE(same_bits(one.lse, two.lse)) << spec.describe();
    EXPECT_TRUE(same_bits(one.block_mass, two.block_mass)) << spec.describe();
    EXPECT_EQ(one.skip_bits, two.skip_bits) << spec.describe();
    EXPECT_EQ(one.pv_pairs, two.pv_pairs) << spec.describe();
  }
}

TEST_P(AttendContract, SkipRulesDropTheSamePieces) {
  int compared = 0, total = 0;
  int64_t skipped = 0;
  for (uint64_t seed = 1; seed <= 5; ++seed)
    for (const Rule& rule : skip_rules()) {
      AttendSpec spec{.dtype = seed % 2 == 0 ? DType::f32 : DType::bf16,
                      .heads = 3,
                      .head_ids = {2, 0},
                      .q_len = 150,
                      .k_len = 300,
                      .head_dim = seed % 3 == 0 ? 128 : 64,
                      .block_q = seed < 3 ? 64 : 100,
                      .block_k = seed == 4 ? 200 : 32,
                      .explicit_blocks = seed == 5,
                      .density = seed == 1 ? 1.0 : 0.8,
                      .visit = VisitOrder::coarse_to_fine,
                      .bias = seed == 3 ? Bias::per_key : Bias::none,
                      .bias_masked = 0.2,
                      .pattern = Pattern::structured,
                      .sharpness = 3.0,
                      .seed = seed};
      AttendCase c(spec);
      ++total;
      const std::optional<AttendResult> expected = stable_reference(c, *ref_, rule);
      if (!expected.has_value()) continue;
      ++compared;
      for (uint64_t word : expected->skip_bits)
        if (word != AttendCase::kUntouchedBits) skipped += word != 0;
      expect_same(c, c.run(*backend_), *expected);
    }
  EXPECT_GE(compared, total / 2) << "too few cases away from their thresholds";
  EXPECT_GT(skipped, 0);
}

TEST_P(AttendContract, RecallRuleKeepsItsPromiseOnEveryRow) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (Pattern pattern : {Pattern::noise, Pattern::structured})
      for (float r : {0.6f, 0.9f, 0.99f}) {
        AttendCase c({.dtype = dtype,
                      .q_len = 200,
                      .k_len = 400,
                      .block_k = 32,
                      .density = 0.999999,
                      .visit = VisitOrder::coarse_to_fine,
                      .pattern = pattern,
                      .sharpness = 3.0,
                      .seed = 3});
        const AttendResult dense = c.run(*ref_);
        c.set_skip(SkipKind::recall, r);
        const AttendResult kept = c.run(*backend_);
        for (size_t row = 0; row < kept.lse.size(); ++row)
          ASSERT_GE(std::exp(double{kept.lse[row]} - dense.lse[row]), r - lse_abs(dtype))
              << c.spec().describe() << " row " << row;
      }
}

TEST_P(AttendContract, ParametersThatSkipNothing) {
  struct {
    SkipKind kind;
    float param;
    double sharpness;  // recall 1 may drop what underflows f32
  } const cases[] = {{SkipKind::running_max, 0.0f, 20.0},
                     {SkipKind::running_lse, -1e30f, 20.0},
                     {SkipKind::recall, 1.0f, 2.0}};
  for (const auto& [kind, param, sharpness] : cases) {
    AttendCase c({.q_len = 200,
                  .k_len = 300,
                  .block_k = 32,
                  .density = 0.999999,
                  .visit = VisitOrder::coarse_to_fine,
                  .pattern = Pattern::structured,
                  .sharpness = sharpness});
    const AttendResult dense = c.run(*ref_);
    c.set_skip(kind, param);
    const AttendResult r = c.run(*backend_);
    EXPECT_EQ(r.pv_pairs, dense.pv_pairs) << c.spec().describe();
    EXPECT_EQ(r.skip_bits, dense.skip_bits) << c.spec().describe();
  }
}

TEST_P(AttendContract, MaskedPiecesGoButNeverTheFirst) {
  // Keys 0..31 and 64..95 are masked. lambda is so small that only masked pieces can go.
  for (SkipKind kind : {SkipKind::running_max, SkipKind::running_lse, SkipKind::recall}) {
    AttendCase c({.heads = 1, .q_len = 70, .k_len = 96, .block_k = 32, .bias = Bias::per_key});
    for (int64_t j = 0; j < 96; ++j)
      if (j / 32 != 1) c.set_bias(j, -std::numeric_limits<float>::infinity());
    c.set_skip(kind, kind == SkipKind::recall        ? 1.0f
                     : kind == SkipKind::running_max ? 0.0f
                                                     : -1e30f);
    const AttendResult r = c.run(*backend_);
    EXPECT_EQ(r.skip_bits, std::vector<uint64_t>{4}) << static_cast<int>(kind);
    EXPECT_EQ(r.pv_pairs, std::vector<int64_t>{70 * 64}) << static_cast<int>(kind);
    for (float x : r.lse) EXPECT_TRUE(std::isfinite(x));
  }
}

TEST_P(AttendContract, FullMaskIsDense) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    AttendCase c({.dtype = dtype, .q_len = 300, .k_len = 300, .block_q = 64, .block_k = 64});
    const AttendResult dense = c.run(*backend_);
    BlockMask mask(2, 5, 5);
    mask.fill();
    c.set_mask(mask);
    const AttendResult listed = c.run(*backend_);
    const int64_t shape[] = {2, 300, 64};
    EXPECT_TRUE(close(listed.out, dense.out, attend_out(dtype), shape, c.spec().describe()));
    EXPECT_EQ(listed.pv_pairs, dense.pv_pairs);
  }
}

TEST_P(AttendContract, NanInOneQueryStaysInItsRow) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    const AttendCase c({.dtype = dtype, .heads = 1, .q_len = 70, .k_len = 70});
    put(c.q(), 9 * c.q().stride[1] + 5, std::nan(""));
    const AttendResult r = c.run(*backend_);
    for (int64_t i = 0; i < 70; ++i)
      EXPECT_EQ(std::isnan(r.out[i * 64]), i == 9) << dtype_name(dtype) << " row " << i;
  }
}

TEST_P(AttendContract, NoKeysAndNoQueries) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    const AttendResult none = AttendCase({.dtype = dtype, .q_len = 5, .k_len = 0}).run(*backend_);
    for (double x : none.out) EXPECT_EQ(x, 0.0);
    for (float x : none.lse) EXPECT_EQ(x, -std::numeric_limits<float>::infinity());
    const AttendResult empty = AttendCase({.dtype = dtype, .q_len = 0, .k_len = 9}).run(*backend_);
    EXPECT_EQ(empty.pv_pairs, std::vector<int64_t>(2, 0));
  }
}

TEST_P(AttendContract, LargeLogitsStayFinite) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    const AttendCase c({.dtype = dtype, .q_len = 64, .k_len = 200, .sharpness = 1e4});
    const AttendResult r = c.run(*backend_), expected = c.run(*ref_);
    for (double x : r.out) ASSERT_TRUE(std::isfinite(x));
    EXPECT_TRUE(near_abs(r.lse, expected.lse, lse_abs(dtype, lse_peak(expected)), "lse"));
  }
}

TEST_P(AttendContract, WrongCallsAreRefusedBeforeAnyWork) {
  const AttendCase c({.q_len = 100, .k_len = 100});
  std::vector<float> out(2 * 100 * 64, 42.0f);
  const auto base = [&] {
    AttendParams p = c.params();
    p.out = out.data(), p.out_head_stride = 6400, p.out_token_stride = 64;
    return p;
  };
  EXPECT_EQ(backend_->unsupported(base()), "");
  std::vector<AttendParams> wrong(6, base());
  wrong[0].head_dim = 0;
  wrong[1].head_dim = 100000;
  wrong[2].num_k_blocks = 3;
  wrong[3].skip = SkipKind::running_max;
  wrong[4].sm_scale = std::nanf("");
  wrong[5].v = nullptr;
  for (size_t i = 0; i < wrong.size(); ++i) {
    const std::string why = backend_->unsupported(wrong[i]);
    EXPECT_FALSE(why.empty()) << "case " << i;
    try {
      backend_->attend(wrong[i]);
      ADD_FAILURE() << "case " << i << " was accepted";
    } catch (const Error& e) {
      EXPECT_EQ(e.what(), why);
    }
  }
  const uint64_t past_the_end[] = {1, 2};  // of 1 key block, 2 heads
  AttendParams p = base();
  p.mask = past_the_end;
  EXPECT_THROW(backend_->attend(p), Error);
  EXPECT_EQ(out, std::vector<float>(out.size(), 42.0f));
}

INSTANTIATE_TEST_SUITE_P(Backends, AttendContract, testing::ValuesIn(backends_under_test()),
                         choice_name);

}  // namespace
}  // namespace lacuna::test
