// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/vae/vae_config.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "lacuna/core/error.h"
#include "lacuna/models/vae/config_fields.h"

namespace lacuna {
namespace {

// Published statistics.
constexpr float kMean16[] = {-0.7571f, -0.7089f, -0.9113f, 0.1075f,  -0.1745f, 0.9653f,
                             -0.1517f, 1.5508f,  0.4134f,  -0.0715f, 0.5517f,  -0.3632f,
                             -0.1922f, -0.9497f, 0.2503f,  -0.2921f};
constexpr float kStd16[] = {2.8184f, 1.4541f, 2.3275f, 2.6558f, 1.2196f, 1.7708f, 2.6052f, 2.0743f,
                            3.2687f, 2.1526f, 2.8652f, 1.5579f, 1.6382f, 1.1253f, 2.8251f, 1.9160f};
constexpr float kMean48[] = {-0.2289f, -0.0052f, -0.1323f, -0.2339f, -0.2799f, 0.0174f,  0.1838f,
                             0.1557f,  -0.1382f, 0.0542f,  0.2813f,  0.0891f,  0.1570f,  -0.0098f,
                             0.0375f,  -0.1825f, -0.2246f, -0.1207f, -0.0698f, 0.5109f,  0.2665f,
                             -0.2108f, -0.2158f, 0.2502f,  -0.2055f, -0.0322f, 0.1109f,  0.1567f,
                             -0.0729f, 0.0899f,  -0.2799f, -0.1230f, -0.0313f, -0.1649f, 0.0117f,
                             0.0723f,  -0.2839f, -0.2083f, -0.0520f, 0.3748f,  0.0152f,  0.1957f,
                             0.1433f,  -0.2944f, 0.3573f,  -0.0548f, -0.1681f, -0.0667f};
constexpr float kStd48[] = {0.4765f, 1.0364f, 0.4514f, 1.1677f, 0.5313f, 0.4990f, 0.4818f, 0.5013f,
                            0.8158f, 1.0344f, 0.5894f, 1.0901f, 0.6885f, 0.6165f, 0.8454f, 0.4978f,
                            0.5759f, 0.3523f, 0.7135f, 0.6804f, 0.5833f, 1.4146f, 0.8986f, 0.5659f,
                            0.7069f, 0.5338f, 0.4889f, 0.4917f, 0.4069f, 0.4999f, 0.6866f, 0.4093f,
                            0.5709f, 0.6065f, 0.6415f, 0.4944f, 0.5726f, 1.2042f, 0.5458f, 1.6887f,
                            0.3971f, 1.0600f, 0.3943f, 0.5537f, 0.5444f, 0.4089f, 0.7468f, 0.7744f};

void set_published_statistics(VaeConfig& config) {
  if (config.z_dim == 16) {
    config.latents_mean.assign(std::begin(kMean16), std::end(kMean16));
    config.latents_std.assign(std::begin(kStd16), std::end(kStd16));
  } else if (config.z_dim == 48) {
    config.latents_mean.assign(std::begin(kMean48), std::end(kMean48));
    config.latents_std.assign(std::begin(kStd48), std::end(kStd48));
  }
}

void read_lists(const ConfigFields& fields, std::string_view where, VaeConfig& config) {
  config.dim_mult = fields.integers("dim_mult", config.dim_mult);
  if (fields.has("temperal_downsample")) {
    config.temporal_downsample.clear();
    for (const auto& v : fields.list("temperal_downsample", 16)) {
      LACUNA_CHECK(v.is_boolean(), "{}: temperal_downsample holds a {}, expected booleans", where,
                   v.type_name());
      config.temporal_downsample.push_back(v.get<bool>() ? 1 : 0);
    }
  }
  if (fields.has("attn_scales")) {
    LACUNA_CHECK(fields.list("attn_scales", 16).empty(),
                 "{}: attn_scales is not empty, expected attention in the middle block only",
                 where);
  }
  if (fields.has("latents_mean") != fields.has("latents_std")) {
    fail("{}: only one of latents_mean and latents_std is given, expected both", where);
  }
  if (fields.has("latents_mean")) {
    config.latents_mean = fields.floats("latents_mean");
    config.latents_std = fields.floats("latents_std");
  } else {
    set_published_statistics(config);
  }
}

}  // namespace

int64_t VaeConfig::temporal_factor() const {
  int64_t factor = 1;
  for (const uint8_t down : temporal_downsample) factor *= down ? 2 : 1;
  return factor;
}

std::vector<int64_t> VaeConfig::decoder_dims() const {
  std::vector<int64_t> dims = {decoder_base_dim * dim_mult.back()};
  for (auto it = dim_mult.rbegin(); it != dim_mult.rend(); ++it) {
    dims.push_back(decoder_base_dim * *it);
  }
  return dims;
}

std::vector<int64_t> VaeConfig::encoder_dims() const {
  std::vector<int64_t> dims = {base_dim};
  for (const int64_t m : dim_mult) dims.push_back(base_dim * m);
  return dims;
}

bool VaeConfig::temporal_upsample(int64_t b) const {
  return temporal_downsample[temporal_downsample.size() - 1 - static_cast<size_t>(b)] != 0;
}

int64_t VaeConfig::frames_out(int64_t latent_frames) const {
  return latent_frames <= 0 ? 0 : 1 + temporal_factor() * (latent_frames - 1);
}

int64_t latent_frames_of(int64_t frames, int64_t factor) {
  const int64_t below = frames < 1 ? 1 : frames - (frames - 1) % factor;
  LACUNA_CHECK(frames == below, "vae: {} frames, expected 1 + a multiple of {}, such as {} or {}",
               frames, factor, below, below + factor);
  return 1 + (frames - 1) / factor;
}

int64_t VaeConfig::latent_frames(int64_t frames) const {
  return latent_frames_of(frames, temporal_factor());
}

void check_vae_config(const VaeConfig& c, std::string_view where) {
  const auto in_range = [&](const char* key, int64_t value, int64_t low, int64_t high) {
    LACUNA_CHECK(value >= low && value <= high, "{}: {} is {}, expected {} to {}", where, key,
                 value, low, high);
  };
  in_range("base_dim", c.base_dim, 1, 4096);
  in_range("decoder_base_dim", c.decoder_base_dim, 1, 4096);
  in_range("z_dim", c.z_dim, 1, 1024);
  in_range("num_res_blocks", c.num_res_blocks, 1, 16);
  in_range("patch_size", c.patch_size, 1, 16);
  in_range("length of dim_mult", c.num_levels(), 2, 6);
  for (const int64_t m : c.dim_mult) in_range("dim_mult", m, 1, 64);
  LACUNA_CHECK(c.temporal_downsample.size() + 1 == c.dim_mult.size(),
               "{}: temperal_downsample has {} entries, expected {}", where,
               c.temporal_downsample.size(), c.dim_mult.size() - 1);
  const auto z = static_cast<size_t>(c.z_dim);
  const bool no_statistics = c.latents_mean.empty() && c.latents_std.empty();
  LACUNA_CHECK(no_statistics || (c.latents_mean.size() == z && c.latents_std.size() == z),
               "{}: latents_mean has {} and latents_std {} values, expected z_dim = {}", where,
               c.latents_mean.size(), c.latents_std.size(), z);
  for (size_t i = 0; i < c.latents_mean.size(); ++i) {
    LACUNA_CHECK(std::isfinite(c.latents_mean[i]) && std::isfinite(c.latents_std[i]) &&
                     c.latents_std[i] > 0.0f,
                 "{}: latent statistics {} of channel {}, expected finite with positive std", where,
                 c.latents_std[i], i);
  }
  if (!c.is_residual) {
    // Each up-convolution halves the channels that the next block reads.
    for (const int64_t d : c.decoder_dims()) {
      LACUNA_CHECK(d % 2 == 0, "{}: decoder width {}, expected an even number", where, d);
    }
    return;
  }
  const std::vector<int64_t> up = c.decoder_dims(), down = c.encoder_dims();
  for (int64_t b = 0; b + 1 < c.num_levels(); ++b) {
    const int64_t up_factor = c.temporal_upsample(b) ? 8 : 4;
    LACUNA_CHECK(up[b + 1] * up_factor % up[b] == 0,
                 "{}: up block {} maps {} to {} channels, expected a divisor of {}", where, b,
                 up[b], up[b + 1], up[b + 1] * up_factor);
  }
  for (int64_t b = 0; b < c.num_levels(); ++b) {
    const bool last = b + 1 == c.num_levels();
    const int64_t down_factor = last ? 1 : (c.temporal_downsample[b] ? 8 : 4);
    LACUNA_CHECK(down[b] * down_factor % down[b + 1] == 0,
                 "{}: down block {} maps {} to {} channels, expected a divisor of {}", where, b,
                 down[b], down[b + 1], down[b] * down_factor);
  }
}

VaeConfig vae_preset(std::string_view name) {
  VaeConfig c;
  if (name == "wan2.1") {
    set_published_statistics(c);
  } else if (name == "wan2.2") {
    c.base_dim = 160;
    c.decoder_base_dim = 256;
    c.z_dim = 48;
    c.is_residual = true;
    c.patch_size = 2;
    set_published_statistics(c);
  } else if (name == "tiny") {
    c.base_dim = c.decoder_base_dim = 8;
    c.z_dim = 4;
    c.num_res_blocks = 1;
    c.latents_mean = {0.1f, -0.2f, 0.3f, -0.4f};
    c.latents_std = {1.5f, 0.5f, 2.0f, 1.0f};
  } else if (name == "tiny-2.2") {
    c.base_dim = 8;
    c.decoder_base_dim = 12;
    c.z_dim = 6;
    c.num_res_blocks = 1;
    c.is_residual = true;
    c.patch_size = 2;
    c.latents_mean.assign(6, 0.0f);
    c.latents_std.assign(6, 1.0f);
  } else {
    fail("vae: preset {}, expected wan2.1, wan2.2, tiny or tiny-2.2", name);
  }
  check_vae_config(c, name);
  return c;
}

VaeConfig parse_vae_config(std::string_view json_text, std::string_view where) {
  const nlohmann::json json = parse_vae_object(json_text, where);
  const ConfigFields fields(json, where);
  VaeConfig c;
  c.base_dim = fields.integer("base_dim", c.base_dim);
  c.decoder_base_dim = fields.integer("decoder_base_dim", c.base_dim);
  c.z_dim = fields.integer("z_dim", c.z_dim);
  c.num_res_blocks = fields.integer("num_res_blocks", c.num_res_blocks);
  c.is_residual = fields.boolean("is_residual", c.is_residual);
  c.patch_size = fields.integer("patch_size", 1);
  read_lists(fields, where, c);
  check_vae_config(c, where);
  fields.must_be("in_channels", c.pixel_channels());
  fields.must_be("out_channels", c.pixel_channels());
  fields.must_be("scale_factor_spatial", c.spatial_factor());
  fields.must_be("scale_factor_temporal", c.temporal_factor());
  return c;
}

}  // namespace lacuna
