// SPDX-License-Identifier: Apache-2.0
// Spatial rows of a frame that stand for the others: CalibAtt's repetition heads.
// Shared by the method and by its calibration.
#pragma once

#include <cstdint>
#include <vector>

namespace lacuna {

// `count` rows, equally spaced: anchor i is row floor((i + 0.5) * height / count); all rows when
// count >= height.
std::vector<int32_t> anchor_rows(int32_t height, int32_t count);
// For every row of a frame the nearest anchor row; of two as near the upper one (lower index).
std::vector<int32_t> nearest_anchors(int32_t height, int32_t count);

}  // namespace lacuna
