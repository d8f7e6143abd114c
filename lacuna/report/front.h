// SPDX-License-Identifier: Apache-2.0
// What is not beaten by anything else.
#pragma once

#include <span>
#include <vector>

namespace lacuna {

// x[i], y[i], both better when lower. True for points that no other point undercuts in one and
// equals or undercuts in the other. Points with a value that is not finite are never on the front.
std::vector<bool> pareto_front(std::span<const double> x, std::span<const double> y);

}  // namespace lacuna
