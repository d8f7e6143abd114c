// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/vae/linear_autoencoder.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <vector>

#include "lacuna/core/error.h"
#include "lacuna/core/threads.h"
#include "lacuna/models/vae/pixels.h"

namespace lacuna {
namespace {

void check_linear_config(const LinearConfig& config, std::string_view where) {
  LACUNA_CHECK(config.patch_size >= 1 && config.patch_size <= 64,
               "{}: patch_size is {}, expected 1 to 64", where, config.patch_size);
  const int64_t values = 3 * config.patch_size * config.patch_size;
  LACUNA_CHECK(config.latent_channels >= 1 && config.latent_channels <= values,
               "{}: latent_channels is {}, expected 1 to {}", where, config.latent_channels,
               values);
}

// patches [h, w, (c, y, x)] of one frame -> frame [h p, w p, 3], clamped to [-1, 1].
void place_patches(const TensorView& patches, int64_t p, const TensorView& frame) {
  const int64_t width = frame.shape[1], cells = width / p, values = 3 * p * p;
  const float* from = patches.as<float>();
  float* to = frame.as<float>();
  parallel_ranges(frame.shape[0], 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t x = 0; x < width; ++x) {
        const float* patch = from + ((row / p) * cells + x / p) * values + (row % p) * p + x % p;
        for (int64_t c = 0; c < 3; ++c) {
          to[(row * width + x) * 3 + c] = std::clamp(patch[c * p * p], -1.0f, 1.0f);
        }
      }
    }
  });
}

// frame [3, 1, H, W] -> patches [H/p * W/p, (c, y, x)].
void take_patches(const TensorView& frame, int64_t p, const TensorView& patches) {
  const int64_t height = frame.shape[2], width = frame.shape[3], cells = width / p;
  const int64_t values = 3 * p * p;
  const float* from = frame.as<float>();
  float* to = patches.as<float>();
  parallel_ranges(height, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t c = 0; c < 3; ++c) {
        const float* line = from + (c * height + row) * width;
        for (int64_t x = 0; x < width; ++x) {
          to[((row / p) * cells + x / p) * values + (c * p + row % p) * p + x % p] = line[x];
        }
      }
    }
  });
}

}  // namespace

LinearConfig parse_linear_config(std::string_view json_text, std::string_view where) {
  const auto json = nlohmann::json::parse(json_text, nullptr, /*allow_exceptions=*/false);
  LACUNA_CHECK(json.is_object(), "{}: not a JSON object, expected a VAE config.json", where);
  LinearConfig config;
  const auto read = [&](const char* key, int64_t& field) {
    const auto value = json.find(key);
    if (value == json.end()) return;
    LACUNA_CHECK(value->is_number_integer(), "{}: {} is {}, expected an integer", where, key,
                 value->type_name());
    field = value->get<int64_t>();
  };
  read("patch_size", config.patch_size);
  read("latent_channels", config.latent_channels);
  check_linear_config(config, where);
  return config;
}

LinearVideoAutoencoder::LinearVideoAutoencoder(LinearConfig config, WeightSource& source)
    : config_(config) {
  check_linear_config(config_, "linear autoencoder");
  const int64_t values = 3 * config_.patch_size * config_.patch_size;
  const int64_t components = config_.latent_channels;
  WeightReader reader(source);
  mean_ = reader.f32("mean", {values});
  const Tensor basis = reader.passing_f32("basis", {components, values});
  const Tensor scale = reader.passing_f32("scale", {components});
  reader.finish("linear autoencoder");
  decode_ = Tensor(DType::f32, {values, components});
  encode_ = Tensor(DType::f32, {components, values});
  encode_bias_ = Tensor(DType::f32, {components});
  for (int64_t k = 0; k < components; ++k) {
    const float s = scale.as<float>()[k];
    LACUNA_CHECK(std::isfinite(s) && s > 0.0f, "linear autoencoder: scale {} of component {}, {}",
                 s, k, "expected positive");
    double dot = 0.0;
    for (int64_t i = 0; i < values; ++i) {
      const float e = basis.as<float>()[k * values + i], m = mean_.as<float>()[i];
      LACUNA_CHECK(std::isfinite(e) && std::isfinite(m),
                   "linear autoencoder: value {} of component {} is not finite", i, k);
      decode_.as<float>()[i * components + k] = e * s;
      encode_.as<float>()[k * values + i] = e / s;
      dot += static_cast<double>(e) * m;
    }
    encode_bias_.as<float>()[k] = static_cast<float>(-dot / s);
  }
  weights_ = {mean_, decode_, encode_, encode_bias_};
}

int64_t LinearVideoAutoencoder::latent_frames(int64_t frames) const {
  LACUNA_CHECK(frames >= 1, "vae: {} frames, expected 1 or more", frames);
  return frames;
}

void LinearVideoAutoencoder::decode(Context& ctx, const TensorView& latents,
                                    const DecodeOptions& options, const FrameSink& sink) const {
  const int64_t components = config_.latent_channels, p = config_.patch_size, values = 3 * p * p;
  LACUNA_CHECK(latents.rank == 4 && latents.dtype == DType::f32 && latents.contiguous() &&
                   latents.shape[0] == components && latents.numel() > 0,
               "vae decode: latents {}, expected contiguous [{}, T, h, w] f32", latents.describe(),
               components);
  const int64_t frames = latents.shape[1], h = latents.shape[2], w = latents.shape[3];
  const Tensor z(DType::f32, {1, h, w, components}), patches(DType::f32, {h * w, values});
  const Tensor frame(DType::f32, {1, h * p, w * p, 3});
  if (options.stats != nullptr) {
    options.stats->buffer_bytes = memory_bytes(frames, h, w, ctx.compute, options.tiling);
  }
  for (int64_t f = 0; f < frames; ++f) {
    unpack_latents(latents, f, {0, 0, h, w}, {}, {}, z);
    ctx.backend.linear(z.view().reshape({h * w, components}), decode_, mean_.as<float>(),
                       Epilogue::none, nullptr, patches);
    place_patches(patches, p, frame.view().reshape({h * p, w * p, 3}));
    sink(frame);
    if (options.progress) options.progress(f + 1, frames);
  }
}

int64_t LinearVideoAutoencoder::memory_bytes(int64_t, int64_t latent_height, int64_t latent_width,
                                             DType, const Tiling&) const {
  const int64_t values = 3 * config_.patch_size * config_.patch_size;
  return latent_height * latent_width * (config_.latent_channels + 2 * values) * 4;
}

int64_t LinearVideoAutoencoder::memory_bytes(const VideoSize& size, DType) const {
  const int64_t p = config_.patch_size, cells = size.height / p * (size.width / p);
  return (cells * (config_.latent_channels + 3 * p * p) + 3 * size.height * size.width) * 4;
}

Tensor LinearVideoAutoencoder::encode_frames(Context& ctx, const VideoSize& size,
                                             const FrameSource& source,
                                             const EncodeOptions& options) const {
  const int64_t components = config_.latent_channels, p = config_.patch_size, values = 3 * p * p;
  LACUNA_CHECK(size.height > 0 && size.width > 0 && size.height % p == 0 && size.width % p == 0,
               "vae encode: video of {} x {}, expected height and width multiples of {}",
               size.height, size.width, p);
  const int64_t frames = latent_frames(size.frames), h = size.height / p, w = size.width / p;
  Tensor latents(DType::f32, {components, frames, h, w});
  const Tensor pixels(DType::f32, {3, 1, size.height, size.width});
  const Tensor patches(DType::f32, {h * w, values}), z(DType::f32, {1, h, w, components});
  for (int64_t f = 0; f < frames; ++f) {
    ctx.check_cancel();
    source(f, pixels);
    take_patches(pixels, p, patches);
    ctx.backend.linear(patches, encode_, encode_bias_.as<float>(), Epilogue::none, nullptr,
                       z.view().reshape({h * w, components}));
    pack_latents(z, {}, {}, f, latents);
    if (options.progress) options.progress(f + 1, frames);
  }
  return latents;
}

}  // namespace lacuna
