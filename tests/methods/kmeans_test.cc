// SPDX-License-Identifier: Apache-2.0
#include "lacuna/methods/kmeans.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/methods/fixtures.h"
#include "tests/support/random.h"

namespace lacuna::test {
namespace {

struct Result {
  int iterations;
  std::vector<float> centroids;
  std::vector<int32_t> order, offsets;
};

class KMeans : public testing::Test {
 protected:
  Result run(const TensorView& x, const Tensor& centroids, int max_iterations) {
    Result r;
    r.order.resize(static_cast<size_t>(x.shape[1]));
    r.offsets.resize(static_cast<size_t>(centroids.view().shape[0] + 1));
    r.iterations =
        run_kmeans(*backend_, workspace_, x, max_iterations, centroids, r.order, r.offsets);
    r.centroids.assign(centroids.as<float>(), centroids.as<float>() + centroids.numel());
    return r;
  }
  // Numbers on a line.
  Result run(std::vector<float> x, const std::vector<float>& start, int max_iterations) {
    const Tensor centroids(DType::f32, {static_cast<int64_t>(start.size()), 1});
    std::copy(start.begin(), start.end(), centroids.as<float>());
    return run(make_view(x.data(), DType::f32, {1, static_cast<int64_t>(x.size()), 1}), centroids,
               max_iterations);
  }

  std::unique_ptr<Backend> backend_ = make_backend("ref");
  Workspace workspace_;
};

// 0 1 | 4 5 9 against 0 and 6, then 0.5 and 6: labels are those against the centroids before the
// last move.
TEST_F(KMeans, TwoStepsByHand) {
  const Result one = run({4, 0, 9, 1, 5}, {0, 5}, 1);
  EXPECT_EQ(one.centroids, (std::vector<float>{0.5f, 6.0f}));
  EXPECT_EQ(one.order, (std::vector<int32_t>{1, 3, 0, 2, 4}));
  EXPECT_EQ(one.offsets, (std::vector<int32_t>{0, 2, 5}));
  EXPECT_EQ(one.iterations, 1);
  // 2.9 is nearer to 0 than to 6, but nearer to 5.1 than to 0: labels say the former.
  const Result late = run({0, 0, 0, 2.9f, 4, 6.2f}, {0, 6}, 1);
  EXPECT_EQ(late.offsets, (std::vector<int32_t>{0, 4, 6}));
  EXPECT_FLOAT_EQ(late.centroids[1], 5.1f);
}

TEST_F(KMeans, StopsWhenNothingMovesAndKeepsTheCentroids) {
  const Result r = run({0, 1, 8, 9}, {0.50001f, 8.5f}, 50);
  EXPECT_EQ(r.iterations, 1);
  EXPECT_EQ(r.centroids[0], 0.50001f);
  EXPECT_EQ(run({0, 1, 8, 9}, {0, 1}, 50).iterations, 3);
  EXPECT_EQ(run({0, 1, 8, 9}, {0, 1}, 2).iterations, 2);
}

TEST_F(KMeans, EmptyClustersStayAndTiesGoToTheLower) {
  const Result r = run({1, 2, 3}, {2, 100, 2}, 5);
  EXPECT_EQ(r.centroids, (std::vector<float>{2, 100, 2}));
  EXPECT_EQ(r.offsets, (std::vector<int32_t>{0, 3, 3, 3}));
}

TEST_F(KMeans, CentroidsAreTheMeansOfTheirTokens) {
  const Tensor x = random_tensor(DType::f32, {1, 300, 24}, 1);
  const Tensor centroids(DType::f32, {11, 24});
  draw_centroids(*backend_, x, "test", 0, centroids);
  const Result r = run(x, centroids, 4);
  ASSERT_EQ(r.iterations, 4);
  TokenOrder{300, 1, r.order}.validate();
  for (int64_t c = 0; c < 11; ++c) {
    const auto begin = r.order.begin() + r.offsets[c], end = r.order.begin() + r.offsets[c + 1];
    EXPECT_TRUE(std::is_sorted(begin, end));
    for (int64_t n = 0; n < 24 && begin != end; ++n) {
      double sum = 0.0;
      for (auto token = begin; token != end; ++token) sum += x.as<float>()[*token * 24 + n];
      EXPECT_NEAR(r.centroids[c * 24 + n], sum / static_cast<double>(end - begin), 1e-6);
    }
  }
}

// bf16 tokens have bf16 centroids.
TEST_F(KMeans, RoundsCentroidsToTheTokensType) {
  const Tensor x(DType::bf16, {1, 3, 1}), centroids(DType::bf16, {1, 1});
  for (int64_t t = 0; t < 3; ++t) put(x, t, t == 0 ? 1.0 : 1.015625);
  draw_centroids(*backend_, x, "test", 0, centroids);
  std::vector<int32_t> order(3), offsets(2);
  run_kmeans(*backend_, workspace_, x, 1, centroids, order, offsets);
  EXPECT_EQ(get(centroids, 0), 1.0078125);  // of 1.01041666
}

TEST_F(KMeans, DrawsAreTokensAndDependOnTheirNumberOnly) {
  const Tensor x = random_tensor(DType::f32, {1, 50, 2}, 2);
  const Tensor all(DType::f32, {30, 2}), tail(DType::f32, {10, 2});
  draw_centroids(*backend_, x, "test", 0, all);
  draw_centroids(*backend_, x, "test", 20, tail);
  for (int64_t c = 0; c < 10; ++c)
    EXPECT_EQ(tail.as<float>()[2 * c], all.as<float>()[2 * (20 + c)]);
  std::vector<int64_t> tokens;
  for (int64_t c = 0; c < 30; ++c)
    for (int64_t t = 0; t < 50; ++t)
      if (all.as<float>()[2 * c] == x.as<float>()[2 * t]) tokens.push_back(t);
  ASSERT_EQ(tokens.size(), 30u);
  std::sort(tokens.begin(), tokens.end());
  EXPECT_LT(std::unique(tokens.begin(), tokens.end()) - tokens.begin(), 30) << "with replacement";
}

}  // namespace
}  // namespace lacuna::test
