// SPDX-License-Identifier: Apache-2.0
#include "lacuna/report/front.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "lacuna/core/error.h"

namespace lacuna {

std::vector<bool> pareto_front(std::span<const double> x, std::span<const double> y) {
  LACUNA_CHECK(x.size() == y.size(), "pareto_front: {} and {} values, expected as many", x.size(),
               y.size());
  std::vector<size_t> order;
  for (size_t i = 0; i < x.size(); ++i)
    if (std::isfinite(x[i]) && std::isfinite(y[i])) order.push_back(i);
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return x[a] != x[b] ? x[a] < x[b] : y[a] < y[b]; });
  std::vector<bool> front(x.size(), false);
  double lowest = std::numeric_limits<double>::infinity(), at = lowest;
  for (const size_t i : order) {  // equal points stand together
    if (y[i] > lowest || (y[i] == lowest && x[i] != at)) continue;
    front[i] = true;
    lowest = y[i];
    at = x[i];
  }
  return front;
}

}  // namespace lacuna
