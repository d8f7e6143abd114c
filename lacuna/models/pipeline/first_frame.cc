// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/pipeline/first_frame.h"

#include <cstring>

#include "lacuna/core/error.h"

namespace lacuna {
namespace {

// `code(frame 0 of a channel, the same in a tensor of one frame, values)` for every channel.
template <typename Code>
void each_channel(const TensorView& latents, const TensorView& frame, const Code& code) {
  const auto& shape = latents.shape;
  LACUNA_CHECK(latents.rank == 4 && frame.rank == 4 && frame.shape[0] == shape[0] &&
                   frame.shape[1] == 1 && frame.shape[2] == shape[2] && frame.shape[3] == shape[3],
               "first frame: {} of latents {}, expected one frame of them", frame.describe(),
               latents.describe());
  const int64_t values = shape[2] * shape[3];
  for (int64_t c = 0; c < shape[0]; ++c)
    code(latents.as<float>() + c * shape[1] * values, frame.as<float>() + c * values,
         static_cast<size_t>(values) * sizeof(float));
}

}  // namespace

std::optional<Picture> picture_to_encode(const Model& model, const Request& request, bool resumed) {
  if (request.image.empty()) return {};
  LACUNA_CHECK(model.takes_image(),
               "image: {} makes videos of text only, expected a model that takes a first picture "
               "(Wan2.2 TI2V-5B)",
               model.name());
  std::optional<Picture> picture;
  if (!resumed) picture = cover(read_picture(request.image), request.width, request.height);
  // After it was read: what is known by its content is no older than what was read.
  const std::string now = picture_content(request.image);
  LACUNA_CHECK(
      now.empty() || request.image_content.empty() || now == request.image_content,
      "image: {} has content {}, this run began with {}; put that file back or start again",
      request.image, now, request.image_content);
  return picture;
}

Tensor encode_picture(Model& model, Context& ctx, const Picture& picture) {
  const Tensor video(DType::f32, {3, 1, picture.height, picture.width});
  const int64_t pixels = int64_t{picture.width} * picture.height;
  for (int64_t i = 0; i < pixels; ++i)
    for (int64_t c = 0; c < 3; ++c)
      video.as<float>()[c * pixels + i] =
          2.0f * (static_cast<float>(picture.rgb[static_cast<size_t>(3 * i + c)]) / 255.0f) - 1.0f;
  Context own(ctx.backend, DType::f32, ctx.cancel);
  return model.encoder().encode(own, video);
}

Tensor first_frame_of(const TensorView& latents) {
  Tensor frame(DType::f32, {latents.shape[0], 1, latents.shape[2], latents.shape[3]});
  each_channel(latents, frame,
               [](const float* from, float* to, size_t bytes) { std::memcpy(to, from, bytes); });
  return frame;
}

void put_first_frame(const TensorView& frame, const TensorView& latents) {
  each_channel(latents, frame,
               [](float* to, const float* from, size_t bytes) { std::memcpy(to, from, bytes); });
}

}  // namespace lacuna
