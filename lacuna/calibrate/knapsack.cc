// SPDX-License-Identifier: Apache-2.0
#include "lacuna/calibrate/knapsack.h"

#include <Cbc_C_Interface.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>

#include "lacuna/core/error.h"

namespace lacuna {

namespace {

struct Delete {
  void operator()(Cbc_Model* model) const { Cbc_deleteModel(model); }
};

// The integer program, column by column: x[g, k] in {0, 1}; row g: sum over k of x[g, k] = 1; the
// last row: sum of share * density * x <= budget.
struct Program {
  std::vector<int> start{0}, row;
  std::vector<double> value, lower, upper, objective, row_lower, row_upper;
};

Program make_program(const std::vector<std::vector<Candidate>>& groups,
                     const std::vector<double>& share, double budget, double error_scale) {
  const int last = static_cast<int>(groups.size());
  Program p;
  for (int g = 0; g < last; ++g)
    for (const Candidate& candidate : groups[g]) {
      p.row.insert(p.row.end(), {g, last});
      p.value.insert(p.value.end(), {1.0, share[g] * candidate.density});
      p.start.push_back(static_cast<int>(p.row.size()));
      p.lower.push_back(0.0);
      p.upper.push_back(1.0);
      p.objective.push_back(share[g] * candidate.error * error_scale);
    }
  p.row_lower.assign(groups.size(), 1.0);
  p.row_upper.assign(groups.size(), 1.0);
  p.row_lower.push_back(0.0);
  p.row_upper.push_back(budget);
  return p;
}

std::vector<double> solve(const Program& p) {
  const std::unique_ptr<Cbc_Model, Delete> model(Cbc_newModel());
  const auto columns = static_cast<int>(p.objective.size());
  Cbc_loadProblem(model.get(), columns, static_cast<int>(p.row_lower.size()), p.start.data(),
                  p.row.data(), p.value.data(), p.lower.data(), p.upper.data(), p.objective.data(),
                  p.row_lower.data(), p.row_upper.data());
  for (int i = 0; i < columns; ++i) Cbc_setInteger(model.get(), i);
  Cbc_setObjSense(model.get(), 1.0);
  Cbc_setParameter(model.get(), "log", "0");
  // With preprocessing CBC 2.10 calls solutions optimal that are not (knapsack_test.cc finds them).
  Cbc_setParameter(model.get(), "preprocess", "off");
  Cbc_solve(model.get());
  LACUNA_CHECK(Cbc_isProvenOptimal(model.get()) == 1,
               "knapsack: the solver ended with status {}, expected an optimum",
               Cbc_status(model.get()));
  const double* solution = Cbc_getColSolution(model.get());
  return {solution, solution + columns};
}

}  // namespace

double mean_density(const std::vector<std::vector<Candidate>>& groups,
                    const std::vector<double>& weights, const std::vector<int>& picked) {
  double sum = 0.0;
  for (size_t g = 0; g < groups.size(); ++g) sum += weights[g] * groups[g][picked[g]].density;
  return sum / std::accumulate(weights.begin(), weights.end(), 0.0);
}

std::vector<int> solve_knapsack(const std::vector<std::vector<Candidate>>& groups,
                                const std::vector<double>& weights, double budget) {
  LACUNA_CHECK(!groups.empty() && groups.size() == weights.size(),
               "knapsack: {} groups with {} weights, expected one each", groups.size(),
               weights.size());
  std::vector<int> sparsest;
  double largest = 0.0;
  for (const auto& group : groups) {
    LACUNA_CHECK(!group.empty(), "knapsack: a group without candidates, expected one or more");
    for (const Candidate& c : group)
      LACUNA_CHECK(std::isfinite(c.error) && c.error >= 0.0 && c.density >= 0.0 && c.density <= 1.0,
                   "knapsack: error {}, density {}, expected 0 or more and 0 to 1", c.error,
                   c.density);
    const auto less = [](const auto& a, const auto& b) { return a.density < b.density; };
    const auto it = std::min_element(group.begin(), group.end(), less);
    sparsest.push_back(static_cast<int>(it - group.begin()));
    for (const Candidate& c : group) largest = std::max(largest, c.error);
  }
  // The solver's feasibility tolerance; less than any step of a real density.
  constexpr double kTolerance = 1e-9;
  const double lowest = mean_density(groups, weights, sparsest);
  LACUNA_CHECK(lowest <= budget + kTolerance,
               "budget: mean density {:.4f}, the sparsest candidates reach {:.4f}", budget, lowest);
  // Shares sum to the number of groups and the largest error is 1e6: the solver takes reduced costs
  // below 1e-7 for none, and errors of heads span decades.
  const double scale =
      static_cast<double>(groups.size()) / std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<double> share(weights);
  for (double& s : share) s *= scale;
  const double rows_budget = (budget + kTolerance) * static_cast<double>(groups.size());
  const std::vector<double> x =
      solve(make_program(groups, share, rows_budget, largest > 0.0 ? 1e6 / largest : 1.0));
  std::vector<int> picked;
  size_t at = 0;
  for (const auto& group : groups) {
    const auto begin = x.begin() + static_cast<int64_t>(at);
    const auto end = begin + static_cast<int64_t>(group.size());
    picked.push_back(static_cast<int>(std::max_element(begin, end) - begin));
    at += group.size();
  }
  return picked;
}

}  // namespace lacuna
