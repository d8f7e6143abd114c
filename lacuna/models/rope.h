// SPDX-License-Identifier: Apache-2.0
// Rotary positions that are whole numbers from 0 on each axis of the token grid.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "lacuna/backend/backend.h"
#include "lacuna/core/video_grid.h"

namespace lacuna {

// Channels of a head per axis: frames, height, width.
using RopeChannels = std::array<int64_t, 3>;

// For an axis of D channels, pair k turns by position * theta^(-2k / D). Angles are made in double
// and stored as f32. One table per axis serves every grid: a grid uses its first rows.
class AxisRope {
 public:
  // Each of `channels` even and 2 or more; max_positions >= 1.
  AxisRope(const RopeChannels& channels, int64_t max_positions, double theta);
  // Of a box of tokens that begins at this frame and line. Points into this object. Throws Error
  // when an axis is longer than max_positions.
  RopeTables tables(const VideoGrid& box, int64_t first_frame = 0, int64_t first_line = 0) const;

 private:
  struct Axis {
    int32_t pairs = 0;
    std::vector<float> cos, sin;  // [max_positions, pairs]
  };
  static Axis make_axis(int64_t channels, int64_t max_positions, double theta);
  int64_t max_positions_;
  Axis frames_, height_, width_;
};

}  // namespace lacuna
