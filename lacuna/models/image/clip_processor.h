// SPDX-License-Identifier: Apache-2.0
// From a picture to what CLIP's vision encoder takes: transformers' CLIPImageProcessor.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "lacuna/core/tensor.h"
#include "lacuna/models/video/picture.h"

namespace lacuna {

// The default is CLIP's.
struct ClipProcessorConfig {
  int64_t shortest_edge = 224;  // pixels that the shorter side is scaled to
  int64_t crop_size = 224;      // pixels a side that are kept of the middle
  double rescale_factor = 1.0 / 255.0;
  std::array<double, 3> mean = {0.48145466, 0.4578275, 0.40821073};
  std::array<double, 3> std = {0.26862954, 0.26130258, 0.27577711};

  // Throws Error naming field, value and allowed range.
  void validate() const;
};

// From the text of a preprocessor_config.json, which is hostile; `who` (a file name) starts every
// message. Refuses other steps than these, such as another filter, or none of them.
ClipProcessorConfig clip_processor_config_from_json(std::string_view json, std::string_view who);

// (level * rescale_factor - mean) / std of the picture scaled with Pillow's bicubic filter, the
// proportions kept, and cut: [3, crop_size, crop_size] f32 on the host. Throws Error without a
// picture.
Tensor clip_pixels(const Picture& picture, const ClipProcessorConfig& config);

}  // namespace lacuna
