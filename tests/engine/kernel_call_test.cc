// SPDX-License-Identifier: Apache-2.0
#include "lacuna/engine/kernel_call.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/engine/fixtures.h"
#include "tests/support/error_of.h"
#include "tests/support/random.h"

namespace lacuna::test {
namespace {

TEST(KernelCall, LengthsMayDifferAndTheScaleIsAsked) {
  constexpr int64_t kHeads = 2, kQueries = 3, kKeys = 200, kChannels = 8;
  constexpr double kScale = 0.75;
  const std::unique_ptr<Backend> backend = make_backend("ref");
  const Tensor q = random_tensor(DType::f32, {kHeads, kQueries, kChannels}, 1),
               k = random_tensor(DType::f32, {kHeads, kKeys, kChannels}, 2),
               v = random_tensor(DType::f32, {kHeads, kKeys, kChannels}, 3),
               out = Tensor::zeros(DType::f32, {kHeads, kQueries, kChannels});
  std::vector<float> lse(kHeads * kQueries);
  Workspace workspace;
  KernelCall call(*backend, workspace);
  call.begin(q, k, v, out);
  call.set_scale(kScale);
  call.write_lse(lse);
  call.run();
  for (int64_t row = 0; row < kHeads * kQueries; ++row) {
    const float* const keys = k.as<float>() + row / kQueries * kKeys * kChannels;
    const float* const values = v.as<float>() + row / kQueries * kKeys * kChannels;
    double total = 0.0, expected = 0.0;
    for (int64_t j = 0; j < kKeys; ++j) {
      double logit = 0.0;
      for (int64_t c = 0; c < kChannels; ++c)
        logit += kScale * q.as<float>()[row * kChannels + c] * keys[j * kChannels + c];
      total += std::exp(logit);
      expected += std::exp(logit) * values[j * kChannels];
    }
    EXPECT_NEAR(out.as<float>()[row * kChannels], expected / total, 1e-5);
    EXPECT_NEAR(lse[static_cast<size_t>(row)], std::log(total), 1e-5);
  }
  EXPECT_THAT(error_of([&] { call.begin(q, k, q, out); }),
              testing::HasSubstr("v [2, 3, 8] f32, expected the shape and dtype of k"));
  const Tensor narrow = random_tensor(DType::f32, {kHeads, kKeys, 4}, 4);
  EXPECT_THAT(error_of([&] { call.begin(q, narrow, narrow, out); }),
              testing::HasSubstr("expected the heads, channels and dtype of q"));
}

}  // namespace
}  // namespace lacuna::test
