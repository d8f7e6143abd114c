// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/image/image_encoder.h"

#include <cstring>
#include <utility>

#include "lacuna/core/error.h"
#include "lacuna/models/weights.h"

namespace lacuna {

ImageEncoder::ImageEncoder(ImageEncoderFiles files) : files_(std::move(files)) {
  const auto source = open_weights(files_.weights);
  const std::string prefix = detect_clip_vision_prefix(*source);
  if (files_.config_json.empty()) {
    config_ = infer_clip_vision_config(*source, prefix);
  } else {
    config_ = clip_vision_config_from_json(files_.config_json, "image encoder config");
    // A config of fewer layers than there are would leave the others out in silence.
    const std::string beyond =
        fmt::format("{}encoder.layers.{}.mlp.fc1.weight", prefix, config_.num_layers);
    LACUNA_CHECK(!source->has(beyond),
                 "image encoder config: num_hidden_layers {}, expected all layers of {}, which has "
                 "{}",
                 config_.num_layers, source->describe(), beyond);
  }
  if (files_.processor_json.empty()) {
    processor_.shortest_edge = processor_.crop_size = config_.image_size;
  } else {
    processor_ = clip_processor_config_from_json(files_.processor_json, files_.processor_file);
  }
  LACUNA_CHECK(processor_.crop_size == config_.image_size,
               "{}: crop_size {}, expected the {} pixels a side that the image encoder takes",
               files_.processor_file, processor_.crop_size, config_.image_size);
}

Tensor ImageEncoder::embed(Context& ctx, std::span<const Picture> pictures) const {
  const auto source = open_weights(files_.weights);
  const ClipVisionEncoder encoder(config_, *source, detect_clip_vision_prefix(*source));
  const ConstantWeights constant(ctx.backend, encoder.weights());
  const int64_t values = config_.rows() * config_.dim;
  Tensor all(DType::f32, {static_cast<int64_t>(pictures.size()) * config_.rows(), config_.dim});
  for (size_t i = 0; i < pictures.size(); ++i) {
    const Tensor rows = encoder.encode(ctx, clip_pixels(pictures[i], processor_));
    std::memcpy(all.as<float>() + static_cast<int64_t>(i) * values, rows.as<float>(),
                static_cast<size_t>(values) * sizeof(float));
  }
  return all;
}

}  // namespace lacuna
