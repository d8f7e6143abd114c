// SPDX-License-Identifier: Apache-2.0
// Pictures -> rows that image-to-video networks look at: processor, CLIP's vision encoder.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "lacuna/models/context.h"
#include "lacuna/models/image/clip_processor.h"
#include "lacuna/models/image/clip_vision.h"
#include "lacuna/models/video/picture.h"

namespace lacuna {

struct ImageEncoderFiles {
  std::vector<std::filesystem::path> weights;  // all shards
  std::string config_json;                     // text of config.json; empty = from tensor shapes
  std::string processor_json;  // text of preprocessor_config.json; empty = CLIP's numbers
  std::string processor_file;  // its name, for messages
};

class ImageEncoder {
 public:
  // Reads configs and the headers of weights, which are opened again when a picture is embedded.
  // Throws Error, also where the two configs are not of one size.
  explicit ImageEncoder(ImageEncoderFiles files);

  // Hidden states of every picture as ClipVisionEncoder::encode() has them, one picture after
  // another: [pictures * rows, dim] f32 on the host. The weights are closed again before it
  // returns.
  Tensor embed(Context& ctx, std::span<const Picture> pictures) const;
  const ClipVisionConfig& config() const { return config_; }

 private:
  ImageEncoderFiles files_;
  ClipVisionConfig config_;
  ClipProcessorConfig processor_;
};

}  // namespace lacuna
