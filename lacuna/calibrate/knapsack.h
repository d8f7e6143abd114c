// SPDX-License-Identifier: Apache-2.0
// One candidate for every group, of least total error under a budget of density.
#pragma once

#include <vector>

namespace lacuna {

struct Candidate {
  double error = 0.0;    // 0 or more
  double density = 0.0;  // 0..1
};

// Multiple-choice knapsack (arXiv 2605.14513, EBC): picks one
// candidate k(g) of every group g with least sum of weight[g] * error such that the weighted mean
// of densities is at most `budget`. Exact; solved as an integer program by COIN-OR CBC. Weights
// are positive. Throws Error naming the lowest reachable density when the budget is below it.
std::vector<int> solve_knapsack(const std::vector<std::vector<Candidate>>& groups,
                                const std::vector<double>& weights, double budget);

// Weighted mean of the density of the picked candidates.
double mean_density(const std::vector<std::vector<Candidate>>& groups,
                    const std::vector<double>& weights, const std::vector<int>& picked);

}  // namespace lacuna
