// SPDX-License-Identifier: Apache-2.0
// The (frames, height, width) box that video tokens fill, in tokens. Token n of raster order is
// n = (frame * height + row) * width + column.
#pragma once

#include <cstdint>

namespace lacuna {

struct VideoGrid {
  int64_t frames = 0;
  int64_t height = 0;
  int64_t width = 0;

  int64_t tokens_per_frame() const { return height * width; }
  int64_t tokens() const { return frames * height * width; }
  bool operator==(const VideoGrid&) const = default;
};

}  // namespace lacuna
