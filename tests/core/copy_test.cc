// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/copy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "lacuna/core/bf16.h"
#include "lacuna/core/error.h"

namespace lacuna {
namespace {

TensorView strided(void* data, DType dtype, std::initializer_list<int64_t> shape,
                   std::initializer_list<int64_t> stride) {
  TensorView view = make_view(data, dtype, shape);
  std::copy(stride.begin(), stride.end(), view.stride.begin());
  return view;
}

std::vector<float> counted(int64_t n) {
  std::vector<float> values(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) values[i] = static_cast<float>(i);
  return values;
}

// Every element of `to` against plain index arithmetic.
void expect_copied(const TensorView& from, const TensorView& to) {
  copy_elements(from, to);
  for (int64_t i = 0; i < to.numel(); ++i) {
    int64_t rest = i, from_at = 0, to_at = 0;
    for (int d = to.rank - 1; d >= 0; --d) {
      from_at += rest % to.shape[d] * from.stride[d];
      to_at += rest % to.shape[d] * to.stride[d];
      rest /= to.shape[d];
    }
    ASSERT_EQ(to.as<float>()[to_at], from.as<float>()[from_at]) << "element " << i;
  }
}

TEST(Copy, FollowsAnyStrides) {
  std::vector<float> from = counted(4000), to(4000, -1.0f);
  expect_copied(make_view(from.data(), DType::f32, {7, 5, 3}),
                make_view(to.data(), DType::f32, {7, 5, 3}));
  // A transpose, a repeat of rows and columns (nearest upsampling), and rows inside wider rows.
  expect_copied(strided(from.data(), DType::f32, {5, 7}, {1, 5}),
                make_view(to.data(), DType::f32, {5, 7}));
  expect_copied(strided(from.data(), DType::f32, {3, 2, 4, 2, 5}, {20, 0, 5, 0, 1}),
                make_view(to.data(), DType::f32, {3, 2, 4, 2, 5}));
  std::vector<float> sparse(64, -1.0f);
  expect_copied(strided(from.data(), DType::f32, {6, 4}, {9, 2}),
                strided(sparse.data(), DType::f32, {6, 4}, {1, 11}));
  EXPECT_EQ(sparse[6], -1.0f);
}

TEST(Copy, CutsLongRowsAndManyShortOnes) {
  std::vector<float> from = counted(200003), to(200003, -1.0f);
  expect_copied(make_view(from.data(), DType::f32, {200003}),
                make_view(to.data(), DType::f32, {200003}));
  expect_copied(strided(from.data(), DType::f32, {50000, 2, 2}, {4, 1, 2}),
                make_view(to.data(), DType::f32, {50000, 2, 2}));
}

TEST(Copy, ConvertsBetweenF32AndBF16) {
  std::vector<float> from = {1.0f, 1.00390625f, 1.01171875f, -3.0e38f,
                             std::numeric_limits<float>::quiet_NaN()};
  std::vector<BFloat16> half(5);
  copy_elements(make_view(from.data(), DType::f32, {5}), make_view(half.data(), DType::bf16, {5}));
  for (size_t i = 0; i < 5; ++i) EXPECT_EQ(half[i].bits, BFloat16(from[i]).bits);
  EXPECT_EQ(static_cast<float>(half[1]), 1.0f);       // a tie goes to even
  EXPECT_EQ(static_cast<float>(half[2]), 1.015625f);  // upwards here
  std::vector<float> back(10, 7.0f);
  copy_elements(strided(half.data(), DType::bf16, {2, 2}, {1, 2}),
                strided(back.data(), DType::f32, {2, 2}, {4, 2}));
  EXPECT_EQ(back, (std::vector<float>{1.0f, 7.0f, 1.015625f, 7.0f, 1.0f, 7.0f,
                                      static_cast<float>(half[3]), 7.0f, 7.0f, 7.0f}));
}

TEST(Copy, RepeatsOneElementOverAll) {
  const float one = 3.0f;
  std::vector<float> to(70000, -1.0f);
  TensorView from = make_view(const_cast<float*>(&one), DType::f32, {7, 10000});
  from.stride.fill(0);
  expect_copied(from, make_view(to.data(), DType::f32, {7, 10000}));
}

TEST(Add, SumsAnyStridesAndRepeats) {
  std::vector<float> a = counted(60), b = counted(12), out(60, -1.0f);
  // b's four channels are spread over pairs: [3, 4, 2] of [3, 4, 1].
  add_elements(strided(a.data(), DType::f32, {3, 4, 2}, {20, 3, 1}),
               strided(b.data(), DType::f32, {3, 4, 2}, {4, 1, 0}),
               strided(out.data(), DType::f32, {3, 4, 2}, {8, 2, 1}));
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 4; ++j)
      for (int k = 0; k < 2; ++k)
        EXPECT_EQ(out[i * 8 + j * 2 + k], a[i * 20 + j * 3 + k] + b[i * 4 + j]);
  EXPECT_EQ(out[24], -1.0f);
}

TEST(Add, RoundsTheSumOnceAndMayBeInPlace) {
  std::vector<BFloat16> a(40), b(40);
  for (int i = 0; i < 40; ++i) {
    a[i] = BFloat16(1.0f + 0.0078125f * static_cast<float>(i));
    b[i] = BFloat16(0.001f * static_cast<float>(i));
  }
  const std::vector<BFloat16> before = a;
  const TensorView x = make_view(a.data(), DType::bf16, {40});
  add_elements(x, make_view(b.data(), DType::bf16, {40}), x);
  for (int i = 0; i < 40; ++i)
    EXPECT_EQ(a[i].bits, BFloat16(static_cast<float>(before[i]) + static_cast<float>(b[i])).bits);
  EXPECT_THROW(add_elements(x, x, make_view(a.data(), DType::bf16, {4, 10})), Error);
  EXPECT_THROW(add_elements(x, make_view(a.data(), DType::f32, {40}), x), Error);
}

TEST(Copy, NamesWhatItCannotDo) {
  std::vector<float> data(16);
  const TensorView a = make_view(data.data(), DType::f32, {4});
  EXPECT_THROW(copy_elements(a, make_view(data.data() + 4, DType::f32, {2, 2})), Error);
  EXPECT_THROW(copy_elements(a, make_view(data.data() + 4, DType::i32, {4})), Error);
  TensorView elsewhere = a;
  elsewhere.device = Device::cuda;
  EXPECT_THROW(copy_elements(a, elsewhere), Error);
  EXPECT_THROW(elsewhere.as<float>(), Error);
}

}  // namespace
}  // namespace lacuna
