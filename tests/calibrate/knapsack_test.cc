// SPDX-License-Identifier: Apache-2.0
#include "lacuna/calibrate/knapsack.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "lacuna/core/error.h"
#include "lacuna/core/rng.h"

namespace lacuna {
namespace {

struct Case {
  std::vector<std::vector<Candidate>> groups;
  std::vector<double> weights;
};

double uniform(const std::string& name, int i) {
  return 0.5 + 0.5 * hash_uniform(name, static_cast<uint64_t>(i));
}

// Groups of different sizes whose error mostly falls with density, errors over decades.
Case random_case(int seed, int num_groups) {
  Case c;
  int i = 0;
  const std::string name = "knapsack/" + std::to_string(seed);
  for (int g = 0; g < num_groups; ++g) {
    c.groups.emplace_back();
    const double scale = std::pow(10.0, -4.0 * uniform(name, i++));
    for (int k = 0; k < 2 + (g + seed) % 3; ++k) {
      const double density = uniform(name, i++);
      c.groups.back().push_back({scale * (1.0 - density + 0.2 * uniform(name, i++)), density});
    }
    c.weights.push_back(seed % 2 == 0 ? 1.0 : 1.0 + std::floor(20.0 * uniform(name, i++)));
  }
  return c;
}

double error_of(const Case& c, const std::vector<int>& picked) {
  double sum = 0.0;
  for (size_t g = 0; g < c.groups.size(); ++g) sum += c.weights[g] * c.groups[g][picked[g]].error;
  return sum;
}

double brute_force(const Case& c, double budget) {
  std::vector<int> picked(c.groups.size(), 0);
  double best = std::numeric_limits<double>::infinity();
  while (true) {
    if (mean_density(c.groups, c.weights, picked) <= budget)
      best = std::min(best, error_of(c, picked));
    size_t g = 0;
    while (g < picked.size() && ++picked[g] == static_cast<int>(c.groups[g].size()))
      picked[g++] = 0;
    if (g == picked.size()) return best;
  }
}

TEST(Knapsack, EqualsBruteForce) {
  int solved = 0;
  for (int seed = 0; seed < 40; ++seed) {
    const Case c = random_case(seed, 2 + seed % 6);
    for (double budget : {0.3, 0.5, 0.7, 1.0}) {
      const double best = brute_force(c, budget);
      if (std::isinf(best)) {
        EXPECT_THROW(solve_knapsack(c.groups, c.weights, budget), Error);
        continue;
      }
      ++solved;
      const std::vector<int> picked = solve_knapsack(c.groups, c.weights, budget);
      EXPECT_LE(mean_density(c.groups, c.weights, picked), budget + 1e-8);
      EXPECT_NEAR(error_of(c, picked), best, 1e-9 * (1.0 + best)) << seed << " " << budget;
    }
  }
  EXPECT_GT(solved, 80);
}

TEST(Knapsack, ABudgetThatIsJustReachedIsReached) {
  const std::vector<std::vector<Candidate>> groups(7, {{0.3, 0.1}, {0.1, 0.3}, {0.0, 1.0}});
  const std::vector<double> weights(7, 1.0);
  const double budget = mean_density(groups, weights, std::vector<int>(7, 1));
  EXPECT_NEAR(error_of({groups, weights}, solve_knapsack(groups, weights, budget)), 0.7, 1e-12);
}

TEST(Knapsack, AsLargeAsAModel) {
  const Case c = random_case(4, 1600);
  const std::vector<int> picked = solve_knapsack(c.groups, c.weights, 0.5);
  EXPECT_LE(mean_density(c.groups, c.weights, picked), 0.5 + 1e-8);
  EXPECT_GT(mean_density(c.groups, c.weights, picked), 0.4999);
}

TEST(Knapsack, SaysWhatIsReachable) {
  try {
    solve_knapsack({{{0.1, 0.4}, {0.2, 0.25}}}, {1.0}, 0.2);
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "budget: mean density 0.2000, the sparsest candidates reach 0.2500");
  }
  EXPECT_THROW(solve_knapsack({}, {}, 0.5), Error);
  EXPECT_THROW(solve_knapsack({{}}, {1.0}, 0.5), Error);
  EXPECT_THROW(solve_knapsack({{{std::nan(""), 0.4}}}, {1.0}, 0.5), Error);
}

}  // namespace
}  // namespace lacuna
