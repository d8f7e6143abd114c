// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/metrics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "lacuna/core/bf16.h"
#include "lacuna/core/error.h"

namespace lacuna {
namespace {

TensorView view(std::vector<float>& values) {
  return make_view(values.data(), DType::f32, {static_cast<int64_t>(values.size())});
}

TEST(Compare, HandComputedDistances) {
  std::vector<float> a = {1, 2, 2}, b = {1, 0, 4};
  const ErrorStats s = compare(view(a), view(b));
  EXPECT_DOUBLE_EQ(s.rel_l1, 4.0 / 5.0);
  EXPECT_DOUBLE_EQ(s.rel_l2, std::sqrt(8.0 / 17.0));
  EXPECT_DOUBLE_EQ(s.max_abs, 2.0);
  EXPECT_DOUBLE_EQ(s.cos_sim, 9.0 / std::sqrt(9.0 * 17.0));
}

TEST(Compare, EqualOppositeAndZero) {
  std::vector<float> a = {1, -2, 3}, minus = {-1, 2, -3}, zero = {0, 0, 0};
  EXPECT_EQ(compare(view(a), view(a)).rel_l2, 0.0);
  EXPECT_NEAR(compare(view(a), view(a)).cos_sim, 1.0, 1e-15);
  EXPECT_NEAR(compare(view(minus), view(a)).cos_sim, -1.0, 1e-15);
  EXPECT_EQ(compare(view(minus), view(a)).rel_l1, 2.0);
  EXPECT_EQ(compare(view(zero), view(zero)).cos_sim, 1.0);
  EXPECT_EQ(compare(view(zero), view(a)).cos_sim, 0.0);
  EXPECT_GT(compare(view(a), view(zero)).rel_l1, 1e300);
}

TEST(Compare, ReadsStridesAndBf16) {
  std::vector<float> wide = {1, 99, 2, 99, 3, 99};
  TensorView strided = make_view(wide.data(), DType::f32, {3, 1});
  strided.stride[0] = 2;
  Tensor narrow(DType::bf16, {3, 1});
  for (int i = 0; i < 3; ++i) narrow.as<BFloat16>()[i] = BFloat16(static_cast<float>(i + 1));
  EXPECT_EQ(compare(strided, narrow).max_abs, 0.0);
}

TEST(Compare, NonFiniteValuesMustAgree) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  std::vector<float> a = {1, inf, nan}, b = {1, inf, nan}, c = {1, -inf, nan}, d = {1, inf, 2};
  EXPECT_EQ(compare(view(a), view(b)).max_abs, 0.0);
  EXPECT_THROW(compare(view(a), view(c)), Error);
  EXPECT_THROW(compare(view(a), view(d)), Error);
  EXPECT_THROW(compare(view(d), view(a)), Error);
  std::vector<float> two = {1, 2};
  EXPECT_THROW(compare(view(a), view(two)), Error);
  EXPECT_THROW(compare(make_view(two.data(), DType::f32, {1, 2}), view(two)), Error);
}

TEST(Psnr, KnownValues) {
  std::vector<float> a = {0.5f, 0.5f, 0.5f, 0.5f}, b = {0.6f, 0.4f, 0.6f, 0.4f};
  EXPECT_NEAR(psnr(view(a), view(b), 1.0), 20.0, 1e-5);
  EXPECT_NEAR(psnr(view(a), view(b), 10.0), 40.0, 1e-5);
  EXPECT_TRUE(std::isinf(psnr(view(a), view(a), 1.0)));
}

}  // namespace
}  // namespace lacuna
