// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/rng.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "lacuna/core/error.h"
#include "lacuna/core/threads.h"

namespace lacuna {
namespace {

TEST(Hash, Fnv1aKnownValues) {
  // From the FNV reference test vectors.
  EXPECT_EQ(fnv1a64(""), 0xcbf29ce484222325ull);
  EXPECT_EQ(fnv1a64("a"), 0xaf63dc4c8601ec8cull);
  EXPECT_EQ(fnv1a64("foobar"), 0x85944171f73967e8ull);
}

TEST(Hash, UniformCheckValues) {
  const double weights[] = {-0.666820526, 0.5858711, 0.682827473, -0.0947955847};
  const double inputs[] = {0.0490874052, 0.29301703, -0.526638865, -0.822999358};
  for (int i = 0; i < 4; ++i) {
    EXPECT_NEAR(hash_uniform("w:patch_embedding.weight", i), weights[i], 1e-8);
    EXPECT_NEAR(hash_uniform("x:wan", i), inputs[i], 1e-8);
  }
}

TEST(Hash, FillIsTheSameFromAnyStartAndForAnyThreadCount) {
  constexpr size_t kN = 600'000;  // several ranges
  std::vector<float> whole(kN), part(1000), alone(kN);
  const int before = num_threads();
  set_num_threads(2);
  fill_hash("t", 0.25, 2.0, whole);
  set_num_threads(1);
  fill_hash("t", 0.25, 2.0, alone);
  set_num_threads(before);
  EXPECT_EQ(std::memcmp(whole.data(), alone.data(), kN * sizeof(float)), 0);
  fill_hash("t", 0.25, 2.0, part, 300'007);
  EXPECT_EQ(std::memcmp(whole.data() + 300'007, part.data(), 4000), 0);
  double mean = 0.0, square = 0.0;
  for (size_t i = 0; i < kN; ++i) {
    if (i % 997 == 0) {
      EXPECT_EQ(whole[i], static_cast<float>(0.25 + 2.0 * hash_uniform("t", i)));
    }
    ASSERT_GE(whole[i], -1.75f);
    ASSERT_LE(whole[i], 2.25f);
    mean += whole[i] / kN;
    square += (whole[i] - 0.25) * (whole[i] - 0.25) / kN;
  }
  EXPECT_NEAR(mean, 0.25, 0.01);
  EXPECT_NEAR(square, 4.0 / 3.0, 0.01);  // variance of a uniform of half width 2
}

TEST(TorchRandn, StartsAsTorchDoes) {
  const float zero[] = {-1.1258398f, -1.1523602f, -0.25057858f, -0.4338788f};
  const float forty_two[] = {1.9269153f, 1.4872841f, 0.9007172f, -2.105521f};
  std::vector<float> values(64);
  torch_randn(0, values);
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(values[i], zero[i], 3e-7);
  torch_randn(42, values);
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(values[i], forty_two[i], 3e-7);
  // The length changes nothing while it is a multiple of 16, and only the last 16 values else.
  std::vector<float> longer(100);
  torch_randn(42, longer);
  EXPECT_EQ(std::memcmp(values.data(), longer.data(), 64 * sizeof(float)), 0);
  std::vector<float> full(112);
  torch_randn(42, full);
  EXPECT_EQ(std::memcmp(full.data(), longer.data(), 84 * sizeof(float)), 0);
  EXPECT_NE(full[90], longer[90]);
}

TEST(TorchRandn, IsStandardNormalAndRefusesShortOutputs) {
  std::vector<float> values(200'000);
  torch_randn(7, values);
  double mean = 0, square = 0, inside = 0;
  const auto n = static_cast<double>(values.size());
  for (float v : values) {
    ASSERT_TRUE(std::isfinite(v));
    mean += v / n;
    square += double{v} * v / n;
    inside += std::abs(v) < 1.0f ? 1 / n : 0;
  }
  EXPECT_NEAR(mean, 0.0, 0.01);
  EXPECT_NEAR(square, 1.0, 0.01);
  EXPECT_NEAR(inside, 0.6827, 0.005);
  EXPECT_THROW(torch_randn(0, std::span<float>(values.data(), 15)), Error);
}

}  // namespace
}  // namespace lacuna
