// SPDX-License-Identifier: Apache-2.0
#include "lacuna/methods/anchors.h"

#include <cstdlib>

namespace lacuna {

std::vector<int32_t> anchor_rows(int32_t height, int32_t count) {
  if (count > height) count = height;
  std::vector<int32_t> rows;
  for (int32_t i = 0; i < count; ++i)
    rows.push_back(static_cast<int32_t>((int64_t{2} * i + 1) * height / (int64_t{2} * count)));
  return rows;
}

std::vector<int32_t> nearest_anchors(int32_t height, int32_t count) {
  const std::vector<int32_t> anchors = anchor_rows(height, count);
  std::vector<int32_t> nearest;
  size_t at = 0;
  for (int32_t row = 0; row < height; ++row) {
    while (at + 1 < anchors.size() && std::abs(anchors[at + 1] - row) < std::abs(anchors[at] - row))
      ++at;
    nearest.push_back(anchors[at]);
  }
  return nearest;
}

}  // namespace lacuna
