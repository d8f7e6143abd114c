// SPDX-License-Identifier: Apache-2.0
#include "lacuna/report/front.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "lacuna/core/error.h"
#include "lacuna/core/rng.h"

namespace lacuna::test {
namespace {

TEST(Front, EqualsTheDefinition) {
  for (int round = 0; round < 200; ++round) {
    const std::string name = "front/" + std::to_string(round);
    const auto n = static_cast<size_t>(round % 23);
    std::vector<double> x, y;
    for (size_t i = 0; i < n; ++i) {  // few values: many ties and equal points
      x.push_back(std::floor(4.0 * hash_uniform(name, 2 * i)));
      y.push_back(std::floor(4.0 * hash_uniform(name, 2 * i + 1)));
    }
    const std::vector<bool> front = pareto_front(x, y);
    for (size_t i = 0; i < n; ++i) {
      bool beaten = false;
      for (size_t j = 0; j < n; ++j)
        beaten = beaten || (x[j] <= x[i] && y[j] <= y[i] && (x[j] < x[i] || y[j] < y[i]));
      EXPECT_EQ(front[i], !beaten) << round << ": " << x[i] << ", " << y[i];
    }
  }
}

TEST(Front, LeavesOutWhatIsNoNumber) {
  const double nan = std::nan(""), inf = std::numeric_limits<double>::infinity();
  const std::vector<double> x{0.0, 1.0, 2.0, -inf}, y{nan, 2.0, 1.0, 0.0};
  EXPECT_EQ(pareto_front(x, y), (std::vector<bool>{false, true, true, false}));
  EXPECT_THROW(pareto_front(x, std::vector<double>{1.0}), Error);
}

}  // namespace
}  // namespace lacuna::test
