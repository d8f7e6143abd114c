// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/pipeline/pictures.h"

#include <algorithm>
#include <cstring>
#include <utility>

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

// Pixels in [-1, 1] of a picture as frame `at` of frames [3, t, height, width] f32.
void place(const Picture& picture, int64_t at, const TensorView& frames) {
  const int64_t pixels = int64_t{picture.width} * picture.height;
  for (int64_t c = 0; c < 3; ++c) {
    float* to = frames.as<float>() + (c * frames.shape[1] + at) * pixels;
    for (int64_t i = 0; i < pixels; ++i)
      to[i] =
          2.0f * (static_cast<float>(picture.rgb[static_cast<size_t>(3 * i + c)]) / 255.0f) - 1.0f;
  }
}

// As much of the video as is encoded.
VideoSize encoded_size(const Model& model, const Request& request) {
  const bool whole = model.architecture().sizes().condition_channels > 0;
  return {whole ? request.frames : 1, request.height, request.width};
}

// What is known by its content is no older than what was read: called behind the reading.
void check_picture_content(const std::string& path, const std::string& content) {
  const std::string now = picture_content(path);
  LACUNA_CHECK(
      now.empty() || content.empty() || now == content,
      "image: {} has content {}, this run began with {}; put that file back or start again", path,
      now, content);
}

// Throws Error when the model takes no such pictures, or needs them and the request has none.
void check_pictures(const Model& model, const Request& request) {
  const auto [least, most] = model.pictures();
  const bool first = !request.image.empty(), last = !request.last_image.empty();
  LACUNA_CHECK(most > 0 || !(first || last),
               "image: {} makes videos of text only, expected a model that takes a first picture "
               "(Wan2.2 TI2V-5B, I2V-A14B, Wan2.1 I2V-14B, FLF2V-14B)",
               model.name());
  LACUNA_CHECK(most > 1 || !last,
               "last image: {} takes a first picture only, expected a model that takes two (Wan2.1 "
               "FLF2V-14B, Wan2.2 I2V-A14B)",
               model.name());
  LACUNA_CHECK(first || (least == 0 && !last),
               "image: none, {} makes videos of a picture; expected one (--image)", model.name());
  LACUNA_CHECK(
      last || least < 2,
      "last image: none, {} makes videos between two pictures; expected one (--last-image)",
      model.name());
  LACUNA_CHECK(!first || request.frames > 1 || model.architecture().sizes().condition_channels > 0,
               "image: a video of {} frames, expected more; the first is the picture itself",
               request.frames);
  LACUNA_CHECK(!last || request.frames > 1,
               "last image: a video of 1 frame has one picture, expected more frames");
}

}  // namespace

RequestPictures read_pictures(const Model& model, const Request& request, bool resumed) {
  check_pictures(model, request);
  RequestPictures pictures;
  const bool looks = model.architecture().sizes().image_dim > 0;
  for (const auto& [path, content] : {std::pair(&request.image, &request.image_content),
                                      {&request.last_image, &request.last_image_content}}) {
    if (path->empty()) continue;
    if (!resumed) {
      Picture whole = read_picture(*path);
      pictures.covered.push_back(cover(whole, request.width, request.height));
      if (looks) pictures.whole.push_back(std::move(whole));
    }
    check_picture_content(*path, *content);
  }
  return pictures;
}

EncodedPictures encode_pictures(Model& model, Context& ctx, const Request& request,
                                const RequestPictures& pictures,
                                const std::function<void(int64_t, int64_t)>& progress) {
  EncodedPictures encoded;
  if (pictures.empty()) return encoded;
  if (!pictures.whole.empty()) encoded.image = model.embed_pictures(ctx, pictures.whole);
  const VideoSize size = encoded_size(model, request);
  const auto frames = [&](int64_t begin, const TensorView& part) {
    std::fill_n(part.as<float>(), part.numel(), 0.0f);  // grey: what is not known
    const int64_t end = begin + part.shape[1], last = size.frames - 1;
    if (begin == 0) place(pictures.covered[0], 0, part);
    if (pictures.covered.size() == 2 && end == size.frames)
      place(pictures.covered[1], last - begin, part);
  };
  Context own(ctx.backend, DType::f32, ctx.cancel);
  Tensor latents = model.encoder().encode_frames(own, size, frames, {true, progress});
  const int64_t channels = model.architecture().sizes().condition_channels;
  if (channels == 0) {
    encoded.first_frame = std::move(latents);
    return encoded;
  }
  const auto& shape = latents.view().shape;
  encoded.condition = Tensor(DType::f32, {channels, shape[1], shape[2], shape[3]});
  const int64_t mask = channels - shape[0];
  fill_mask(pictures.covered.size() == 2, encoded.condition.view().slice(0, mask));
  std::memcpy(encoded.condition.as<float>() + mask * shape[1] * shape[2] * shape[3],
              latents.as<float>(), static_cast<size_t>(latents.numel()) * sizeof(float));
  return encoded;
}

int64_t encoded_pictures_bytes(Model& model, const Request& request) {
  const int64_t video = model.encoder().memory_bytes(encoded_size(model, request), DType::f32);
  if (model.architecture().sizes().image_dim == 0) return video;
  return std::max(video, model.image_encoder_bytes(request.last_image.empty() ? 1 : 2));
}

SamplingState first_state(const Request& request, const Model::LatentShape& latent,
                          const EncodedPictures& encoded) {
  SamplingState state;
  state.latents =
      initial_noise(request.seed, latent.channels, latent.frames, latent.height, latent.width);
  if (!encoded.first_frame.empty()) put_first_frame(encoded.first_frame, state.latents);
  if (!encoded.condition.empty()) state.condition = copy_of(encoded.condition);
  if (!encoded.image.empty()) state.image = copy_of(encoded.image);
  return state;
}

void fill_mask(bool last_known, const TensorView& mask) {
  const auto& shape = mask.shape;
  const int64_t cells = shape[2] * shape[3];
  for (int64_t channel = 0; channel < shape[0]; ++channel)
    for (int64_t frame = 0; frame < shape[1]; ++frame) {
      const bool last = frame + 1 == shape[1] && channel + 1 == shape[0];
      const bool known = frame == 0 || (last_known && last);
      std::fill_n(mask.as<float>() + (channel * shape[1] + frame) * cells, cells,
                  known ? 1.0f : 0.0f);
    }
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
