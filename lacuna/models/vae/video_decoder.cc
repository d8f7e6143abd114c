// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/vae/video_decoder.h"

#include <string>

#include "lacuna/core/error.h"
#include "lacuna/core/threads.h"
#include "lacuna/models/vae/config_fields.h"
#include "lacuna/models/vae/hunyuan_decoder.h"
#include "lacuna/models/vae/linear_autoencoder.h"
#include "lacuna/models/vae/mochi_decoder.h"
#include "lacuna/models/vae/taehv_decoder.h"
#include "lacuna/models/vae/wan_decoder.h"
#include "lacuna/models/vae/wan_encoder.h"

namespace lacuna {
namespace {

enum class VaeClass { wan, linear, mochi, hunyuan, taehv };

VaeClass vae_class(std::string_view config_json, std::string_view where) {
  const nlohmann::json json = parse_vae_object(config_json, where);
  const auto name = json.find("_class_name");
  if (name == json.end()) return VaeClass::wan;
  LACUNA_CHECK(name->is_string(), "{}: _class_name is {}, expected a string", where,
               name->type_name());
  if (*name == "AutoencoderKLWan") return VaeClass::wan;
  if (*name == "LinearVideoAutoencoder") return VaeClass::linear;
  if (*name == "AutoencoderKLMochi") return VaeClass::mochi;
  if (*name == "AutoencoderKLHunyuanVideo") return VaeClass::hunyuan;
  if (*name == "TAEHV") return VaeClass::taehv;
  fail("{}: class {}, expected AutoencoderKLWan, AutoencoderKLMochi, {}", where,
       name->get<std::string>().substr(0, 80),
       "AutoencoderKLHunyuanVideo, LinearVideoAutoencoder or TAEHV");
}

}  // namespace

Tensor VideoEncoder::encode(Context& ctx, const TensorView& video, bool normalize) const {
  LACUNA_CHECK(video.rank == 4 && video.dtype == DType::f32 && video.contiguous() &&
                   video.shape[0] == 3 && video.numel() > 0,
               "vae encode: video {}, expected contiguous [3, F, H, W] f32", video.describe());
  EncodeOptions options;
  options.normalize = normalize;
  return encode_frames(
      ctx, {video.shape[1], video.shape[2], video.shape[3]},
      [&](int64_t begin, const TensorView& frames) {
        ctx.backend.copy(video.narrow(1, begin, frames.shape[1]), frames);
      },
      options);
}

Tensor decode_video(const VideoDecoder& decoder, Context& ctx, const TensorView& latents,
                    const DecodeOptions& options) {
  LACUNA_CHECK(latents.rank == 4, "vae decode: latents {}, expected [C, T, h, w]",
               latents.describe());
  const int64_t frames = decoder.frames_out(latents.shape[1]);
  const int64_t h = latents.shape[2] * decoder.spatial_factor();
  const int64_t w = latents.shape[3] * decoder.spatial_factor();
  Tensor video(DType::f32, {3, frames, h, w});
  float* out = video.as<float>();
  int64_t at = 0;
  decoder.decode(ctx, latents, options, [&](const TensorView& part) {
    const float* in = part.as<float>();
    const int64_t begin = at;
    at += part.shape[0];
    LACUNA_CHECK(at <= frames && part.shape[1] == h && part.shape[2] == w,
                 "vae decode: frames {} at {}, expected {} x {} and {} in all", part.describe(),
                 begin, h, w, frames);
    parallel_ranges(part.shape[0] * h, 16, [&](int64_t from, int64_t to) {
      for (int64_t row = from; row < to; ++row) {
        for (int64_t c = 0; c < 3; ++c) {
          float* line = out + (c * frames * h + begin * h + row) * w;
          for (int64_t x = 0; x < w; ++x) line[x] = in[(row * w + x) * 3 + c];
        }
      }
    });
  });
  LACUNA_CHECK(at == frames, "vae decode: {} frames, expected {}", at, frames);
  return video;
}

std::unique_ptr<VideoDecoder> make_video_decoder(std::string_view config_json,
                                                 std::string_view where, WeightSource& source) {
  switch (vae_class(config_json, where)) {
    case VaeClass::mochi:
      return std::make_unique<MochiDecoder>(parse_mochi_vae_config(config_json, where), source);
    case VaeClass::hunyuan:
      return std::make_unique<HunyuanDecoder>(parse_hunyuan_vae_config(config_json, where), source);
    case VaeClass::linear:
      return std::make_unique<LinearVideoAutoencoder>(parse_linear_config(config_json, where),
                                                      source);
    case VaeClass::taehv:
      return std::make_unique<TaehvDecoder>(parse_taehv_config(config_json, where), source);
    default:
      return std::make_unique<WanDecoder>(parse_vae_config(config_json, where), source);
  }
}

std::unique_ptr<VideoEncoder> make_video_encoder(std::string_view config_json,
                                                 std::string_view where, WeightSource& source) {
  switch (vae_class(config_json, where)) {
    case VaeClass::wan:
      return std::make_unique<WanEncoder>(parse_vae_config(config_json, where), source);
    case VaeClass::linear:
      return std::make_unique<LinearVideoAutoencoder>(parse_linear_config(config_json, where),
                                                      source);
    default:
      fail("{}: an autoencoder that is only read as a decoder, expected AutoencoderKLWan or {}",
           where, "LinearVideoAutoencoder");
  }
}

}  // namespace lacuna
