// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/image/clip_processor.h"

#include "lacuna/core/error.h"

namespace lacuna {

Tensor clip_pixels(const Picture& picture, const ClipProcessorConfig& config) {
  LACUNA_CHECK(picture.width > 0 && picture.height > 0,
               "clip vision: a picture of {}x{} pixels, expected 1 or more each way", picture.width,
               picture.height);
  config.validate();
  const auto edge = static_cast<int>(config.shortest_edge);
  const auto kept = static_cast<int>(config.crop_size);
  // The longer side is cut down to whole pixels, not rounded.
  const auto longer = [&](int side, int shorter) {
    return static_cast<int>(static_cast<double>(int64_t{edge} * side) / shorter);
  };
  const bool upright = picture.width <= picture.height;
  const PixelSize scaled = upright ? PixelSize{edge, longer(picture.height, picture.width)}
                                   : PixelSize{longer(picture.width, picture.height), edge};
  const Picture cut = resize_and_cut(picture, ResizeFilter::bicubic, scaled, {kept, kept});
  Tensor pixels(DType::f32, {3, kept, kept});
  const int64_t count = int64_t{kept} * kept;
  for (int64_t c = 0; c < 3; ++c) {
    const auto mean = static_cast<float>(config.mean[static_cast<size_t>(c)]);
    const auto deviation = static_cast<float>(config.std[static_cast<size_t>(c)]);
    for (int64_t i = 0; i < count; ++i) {
      const double level = cut.rgb[static_cast<size_t>(3 * i + c)];
      pixels.as<float>()[c * count + i] =
          (static_cast<float>(level * config.rescale_factor) - mean) / deviation;
    }
  }
  return pixels;
}

}  // namespace lacuna
