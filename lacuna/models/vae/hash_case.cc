// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/vae/hash_case.h"

#include <cstring>
#include <nlohmann/json.hpp>

#include "lacuna/core/error.h"
#include "lacuna/core/rng.h"
#include "lacuna/models/vae/video_decoder.h"
#include "lacuna/models/weights.h"

namespace lacuna {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMaxInputValues = int64_t{1} << 26;

void read_input(const Json& input, VaeHashCase& out) {
  out.input_name = input.at("hash").get<std::string>();
  const Json& shape = input.at("shape");
  LACUNA_CHECK(shape.is_array() && shape.size() == 5 && shape[0] == 1,
               "golden {}: input shape {}, expected [1, c, t, h, w]", out.tag, shape.dump());
  int64_t count = 1;
  for (size_t i = 0; i < 4; ++i) {
    out.shape[i] = shape[i + 1].get<int64_t>();
    LACUNA_CHECK(out.shape[i] >= 1 && out.shape[i] <= 4096,
                 "golden {}: dimension {}, expected 1 to 4096", out.tag, out.shape[i]);
    count *= out.shape[i];
  }
  LACUNA_CHECK(count <= kMaxInputValues, "golden {}: {} input values, expected at most {}", out.tag,
               count, kMaxInputValues);
  if (input.contains("amplitude")) out.amplitude = input.at("amplitude").get<double>();
}

}  // namespace

VaeHashCase parse_vae_hash_case(std::string_view case_json, std::string_view where) {
  VaeHashCase out;
  try {
    const Json json = Json::parse(case_json);
    LACUNA_CHECK(json.at("module") == "vae", "{}: module {}, expected vae", where,
                 json.at("module").dump());
    out.tag = json.at("expect").at("tag").get<std::string>();
    out.config = json.at("config").dump();
    out.weights = json.at("weights").get<std::string>();
    const std::string mode = json.at("mode").get<std::string>();
    LACUNA_CHECK(mode == "decode" || mode == "encode", "{}: mode {}, expected decode or encode",
                 where, mode);
    out.encode = mode == "encode";
    read_input(json.at("inputs").at(out.encode ? "pixels" : "latents"), out);
    if (json.contains("latent_frames")) out.latent_frames = json.at("latent_frames").get<int64_t>();
    if (json.contains("tiling")) {
      const Json& tiling = json.at("tiling");
      out.tiling.mode = TileMode::blend;
      out.tiling.tile_height = out.tiling.tile_width = tiling.at("tile").get<int64_t>();
      out.tiling.stride_height = out.tiling.stride_width = tiling.at("stride").get<int64_t>();
    }
  } catch (const Json::exception& error) {
    fail("{}: {}, expected a VAE golden case", where, error.what());
  }
  return out;
}

Tensor vae_hash_input(const VaeHashCase& hash_case) {
  const auto& [c, t, h, w] = hash_case.shape;
  Tensor all(DType::f32, {c, t, h, w});
  fill_hash(hash_case.input_name, 0.0, hash_case.amplitude,
            {all.as<float>(), static_cast<size_t>(all.numel())});
  const int64_t kept = hash_case.latent_frames;
  if (kept == 0) return all;
  LACUNA_CHECK(kept >= 1 && kept <= t, "golden {}: {} latent frames, expected 1 to {}",
               hash_case.tag, kept, t);
  Tensor part(DType::f32, {c, kept, h, w});
  for (int64_t i = 0; i < c; ++i) {
    std::memcpy(part.as<float>() + i * kept * h * w, all.as<float>() + i * t * h * w,
                static_cast<size_t>(kept * h * w) * sizeof(float));
  }
  return part;
}

Tensor run_vae_hash_case(Backend& backend, DType compute, const VaeHashCase& hash_case) {
  const auto source = hash_weights(hash_case.weights, hash_case.storage);
  Context ctx{backend, compute};
  const Tensor input = vae_hash_input(hash_case);
  if (hash_case.encode) {
    return make_video_encoder(hash_case.config, hash_case.tag, *source)
        ->encode(ctx, input, /*normalize=*/false);
  }
  DecodeOptions options;
  options.denormalize = false;
  options.tiling = hash_case.tiling;
  options.frames_per_pass = hash_case.frames_per_pass;
  return decode_video(*make_video_decoder(hash_case.config, hash_case.tag, *source), ctx, input,
                      options);
}

}  // namespace lacuna
