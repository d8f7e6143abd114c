// SPDX-License-Identifier: Apache-2.0
// Decoded frames in memory, before any encoder.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace lacuna {

struct Clip {
  int width = 0, height = 0;  // pixels
  int fps = 16;
  std::vector<uint8_t> rgb;  // [frames, height, width, 3]

  size_t frame_bytes() const { return size_t{3} * width * height; }
  int frames() const { return rgb.empty() ? 0 : static_cast<int>(rgb.size() / frame_bytes()); }
  std::span<const uint8_t> frame(int t) const {
    return {rgb.data() + static_cast<size_t>(t) * frame_bytes(), frame_bytes()};
  }
  // frame as frame() gives it, of this size.
  void append(std::span<const uint8_t> frame) { rgb.insert(rgb.end(), frame.begin(), frame.end()); }
};

struct NamedClip {
  std::string name;
  const Clip* clip;
};

}  // namespace lacuna
