// SPDX-License-Identifier: Apache-2.0
// Attention that the tensor-core kernels refuse: f32, any head_dim, scales and strides.
#include <gtest/gtest.h>

#include "tests/support/attend_expect.h"
#include "tests/support/backends.h"
#include "tests/support/shapes.h"

namespace lacuna::test {
namespace {

class CudaAttendAny : public BackendTest {
 protected:
  // With and without the optional outputs: they change the plan.
  void expect_ref(const AttendSpec& spec) {
    const AttendCase c(spec);
    const AttendResult expected = c.run(*ref_), bare = c.run(*backend_, false);
    expect_same(c, c.run(*backend_), expected);
    const int64_t shape[] = {spec.heads, spec.q_len, spec.head_dim};
    EXPECT_TRUE(close(bare.out, expected.out, attend_out(spec.dtype, lse_peak(expected)), shape,
                      spec.describe() + " without optional outputs"));
  }
};

TEST_P(CudaAttendAny, SharedShapesInF32) {
  const std::vector<AttendSpec> shapes = attend_shapes();
  const int count = turns(static_cast<int>(shapes.size()));
  for (int i = 0; i < count; ++i) {
    AttendSpec spec = shapes[i * shapes.size() / count];
    spec.q_len = std::min<int64_t>(spec.q_len, 391);
    spec.k_len = std::min<int64_t>(spec.k_len, 391);
    expect_ref(spec);
  }
}

TEST_P(CudaAttendAny, HeadDimsBetweenAndBeyondTheInstances) {
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const int32_t dim : {1, 40, 96, 130, 384, 512}) {
      expect_ref({.dtype = dtype,
                  .heads = 1,
                  .q_len = 50,
                  .k_len = 90,
                  .head_dim = dim,
                  .storage = dim == 40 ? Storage::odd : Storage::tokens_first});
    }
}

// What compensation asks: means of blocks as keys in blocks of one token, ln n as bias, the rows of
// one query block or one row per block.
TEST_P(CudaAttendAny, CompensationTails) {
  for (const bool per_row : {true, false})
    expect_ref({.dtype = per_row ? DType::bf16 : DType::f32,
                .heads = 3,
                .head_ids = {2, 0},
                .q_len = per_row ? 80 : 20,
                .k_len = 37,
                .head_dim = per_row ? 80 : 64,
                .block_q = per_row ? 48 : 1,
                .block_k = 1,
                .density = 0.7,
                .empty_rows = true,
                .bias = Bias::per_key,
                .bias_masked = 0.1});
}

TEST_P(CudaAttendAny, ExplicitBlocksAndFullBias) {
  expect_ref({.heads = 4,
              .head_ids = {3, 1},
              .q_len = 130,
              .k_len = 170,
              .head_dim = 72,
              .explicit_blocks = true,
              .storage = Storage::padded,
              .density = 0.6,
              .bias = Bias::full,
              .bias_masked = 0.2});
}

TEST_P(CudaAttendAny, ScalesOfEitherSign) {
  for (const float scale : {-0.2f, 0.0f}) {
    const AttendCase c({.dtype = DType::bf16, .heads = 1, .q_len = 33, .k_len = 65});
    const auto scaled = [&](Backend& backend) {
      return c.run_with([&](AttendParams p) {
        p.sm_scale = scale;
        backend.attend(p);
      });
    };
    expect_same(c, scaled(*backend_), scaled(*ref_));
  }
}

TEST_P(CudaAttendAny, NanInOneQueryStaysInItsRow) {
  const AttendCase c({.heads = 1, .q_len = 70, .k_len = 70, .head_dim = 96});
  put(c.q(), 9 * c.q().stride[1] + 5, std::nan(""));
  const AttendResult r = c.run(*backend_);
  for (int64_t i = 0; i < 70; ++i) EXPECT_EQ(std::isnan(r.out[i * 96]), i == 9) << "row " << i;
}

TEST_P(CudaAttendAny, NoKeysAndNoQueries) {
  const AttendResult none = AttendCase({.q_len = 5, .k_len = 0}).run(*backend_);
  for (double x : none.out) EXPECT_EQ(x, 0.0);
  for (float x : none.lse) EXPECT_EQ(x, -std::numeric_limits<float>::infinity());
  const AttendResult empty = AttendCase({.q_len = 0, .k_len = 9}).run(*backend_);
  EXPECT_EQ(empty.pv_pairs, std::vector<int64_t>(2, 0));
}

TEST_P(CudaAttendAny, RefusesSkipRulesAndWiderHeads) {
  const auto why = [&](const AttendSpec& spec, float scale) {
    const AttendCase c(spec);
    AttendParams p = c.params();
    std::vector<float> out(4);
    p.out = out.data();
    p.sm_scale = scale;
    return backend_->unsupported(p);
  };
  const auto with_rule = [](DType dtype, int32_t dim) {
    return AttendSpec{
        .dtype = dtype, .head_dim = dim, .skip = SkipKind::recall, .skip_param = 0.9f};
  };
  EXPECT_EQ(why({.head_dim = 520}, 0.1f), "attend: head_dim 520 on cuda, expected 1 to 512");
  EXPECT_EQ(why(with_rule(DType::bf16, 64), 0.125f), "");
  EXPECT_NE(why(with_rule(DType::f32, 64), 0.125f), "");
  EXPECT_NE(why(with_rule(DType::bf16, 96), 0.125f), "");
  EXPECT_NE(why(with_rule(DType::bf16, 64), -0.125f), "");
}

INSTANTIATE_TEST_SUITE_P(Cuda, CudaAttendAny, testing::ValuesIn(backends_under_test()),
                         choice_name);

}  // namespace
}  // namespace lacuna::test
