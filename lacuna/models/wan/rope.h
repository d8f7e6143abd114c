// SPDX-License-Identifier: Apache-2.0
// Rotary position tables of the Wan transformer.
#pragma once

#include <cstdint>
#include <vector>

#include "lacuna/backend/backend.h"
#include "lacuna/core/video_grid.h"

namespace lacuna {

// Channels of a head split into [frames | height | width] parts: height and width get
// 2 * (head_dim / 6) each, frames the rest (128 -> 44, 42, 42). For an axis of D channels, pair k
// turns by position * theta^(-2k / D). Angles are made in double and stored as f32. Positions start
// at 0 on every axis, so one table per axis serves every grid: a grid uses its first rows.
class WanRope {
 public:
  // head_dim even and >= 8; max_positions >= 1.
  WanRope(int64_t head_dim, int64_t max_positions, double theta);
  // Points into this object. Throws Error when an axis is longer than max_positions.
  RopeTables tables(const VideoGrid& grid) const;

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
