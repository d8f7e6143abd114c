// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/rope.h"

#include <cmath>

#include "lacuna/core/error.h"

namespace lacuna {

AxisRope::AxisRope(const RopeChannels& channels, int64_t max_positions, double theta)
    : max_positions_(max_positions) {
  for (const int64_t axis : channels)
    LACUNA_CHECK(axis >= 2 && axis % 2 == 0,
                 "rope: {} channels of an axis, expected an even number of at least 2", axis);
  LACUNA_CHECK(max_positions >= 1, "rope: {} positions, expected at least 1", max_positions);
  frames_ = make_axis(channels[0], max_positions, theta);
  height_ = make_axis(channels[1], max_positions, theta);
  width_ = make_axis(channels[2], max_positions, theta);
}

AxisRope::Axis AxisRope::make_axis(int64_t channels, int64_t max_positions, double theta) {
  Axis axis;
  axis.pairs = static_cast<int32_t>(channels / 2);
  axis.cos.reserve(static_cast<size_t>(max_positions * axis.pairs));
  axis.sin.reserve(static_cast<size_t>(max_positions * axis.pairs));
  for (int64_t position = 0; position < max_positions; ++position) {
    for (int32_t k = 0; k < axis.pairs; ++k) {
      const double exponent = -2.0 * k / static_cast<double>(channels);
      const double angle = static_cast<double>(position) * std::pow(theta, exponent);
      axis.cos.push_back(static_cast<float>(std::cos(angle)));
      axis.sin.push_back(static_cast<float>(std::sin(angle)));
    }
  }
  return axis;
}

RopeTables AxisRope::tables(const VideoGrid& box, int64_t first_frame, int64_t first_line) const {
  const int64_t frames = first_frame + box.frames, height = first_line + box.height;
  LACUNA_CHECK(frames <= max_positions_ && height <= max_positions_ && box.width <= max_positions_,
               "rope: grid {} x {} x {}, expected at most {} on every axis", frames, height,
               box.width, max_positions_);
  RopeTables tables;
  tables.frames = box.frames;
  tables.height = box.height;
  tables.width = box.width;
  tables.pairs_frames = frames_.pairs;
  tables.pairs_height = height_.pairs;
  tables.pairs_width = width_.pairs;
  tables.cos_frames = frames_.cos.data() + first_frame * frames_.pairs;
  tables.sin_frames = frames_.sin.data() + first_frame * frames_.pairs;
  tables.cos_height = height_.cos.data() + first_line * height_.pairs;
  tables.sin_height = height_.sin.data() + first_line * height_.pairs;
  tables.cos_width = width_.cos.data();
  tables.sin_width = width_.sin.data();
  return tables;
}

}  // namespace lacuna
