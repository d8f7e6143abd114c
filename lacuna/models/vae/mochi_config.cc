// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/vae/mochi_config.h"

#include <functional>
#include <numeric>
#include <string>

#include "lacuna/models/vae/config_fields.h"

namespace lacuna {
namespace {

// Published statistics.
constexpr float kMochiMean[] = {
    -0.06730895953510081f, -0.038011381506090416f, -0.07477820912866141f,  -0.05565264470995561f,
    0.012767231469026969f, -0.04703542746246419f,  0.043896967884726704f,  -0.09346305707025976f,
    -0.09918314763016893f, -0.008729793427399178f, -0.011931556316503654f, -0.0321993391887285f};
constexpr float kMochiStd[] = {0.9263795028493863f, 0.9248894543193766f, 0.9393059390890617f,
                               0.959253732819592f,  0.8244560132752793f, 0.917259975397747f,
                               0.9294154431013696f, 1.3720942357788521f, 0.881393668867029f,
                               0.9168315692124348f, 0.9185249279345552f, 0.9274757570805041f};

int64_t product(const std::vector<int64_t>& factors) {
  return std::accumulate(factors.begin(), factors.end(), int64_t{1}, std::multiplies<>());
}

void read_mochi_statistics(const ConfigFields& fields, std::string_view where,
                           MochiVaeConfig& config) {
  // Upstream takes null for no statistics at all, which no published model has: refused as no list.
  LACUNA_CHECK(fields.given("latents_mean") == fields.given("latents_std"),
               "{}: only one of latents_mean and latents_std is given, expected both", where);
  if (fields.given("latents_mean")) {
    config.latents_mean = fields.floats("latents_mean");
    config.latents_std = fields.floats("latents_std");
  } else if (config.latent_channels == 12) {
    config.latents_mean.assign(std::begin(kMochiMean), std::end(kMochiMean));
    config.latents_std.assign(std::begin(kMochiStd), std::end(kMochiStd));
  }
  const auto scaling = static_cast<float>(fields.number("scaling_factor", 1.0));
  LACUNA_CHECK(std::isfinite(scaling) && scaling > 0.0f,
               "{}: scaling_factor is {}, expected finite and positive", where, scaling);
  const auto channels = static_cast<size_t>(config.latent_channels);
  const bool none = config.latents_mean.empty() && config.latents_std.empty();
  LACUNA_CHECK(
      none || (config.latents_mean.size() == channels && config.latents_std.size() == channels),
      "{}: latents_mean has {} and latents_std {} values, expected latent_channels = {}", where,
      config.latents_mean.size(), config.latents_std.size(), channels);
  for (size_t i = 0; i < config.latents_std.size(); ++i) {
    float& deviation = config.latents_std[i];
    deviation /= scaling;
    LACUNA_CHECK(
        std::isfinite(config.latents_mean[i]) && std::isfinite(deviation) && deviation > 0.0f,
        "{}: latent statistics {} of channel {}, expected finite with positive std", where,
        deviation, i);
  }
}

}  // namespace

int64_t MochiVaeConfig::spatial_factor() const {
  return product(spatial_expansions);
}

int64_t MochiVaeConfig::temporal_factor() const {
  return product(temporal_expansions);
}

MochiVaeConfig parse_mochi_vae_config(std::string_view json_text, std::string_view where) {
  const nlohmann::json json = parse_vae_object(json_text, where);
  const ConfigFields fields(json, where);
  MochiVaeConfig c;
  c.latent_channels = fields.integer("latent_channels", c.latent_channels);
  c.block_out_channels = fields.integers("decoder_block_out_channels", c.block_out_channels);
  c.layers_per_block = fields.integers("layers_per_block", c.layers_per_block);
  c.temporal_expansions = fields.integers("temporal_expansions", c.temporal_expansions);
  c.spatial_expansions = fields.integers("spatial_expansions", c.spatial_expansions);
  fields.must_be("out_channels", 3);
  fields.one_of("act_fn", {"silu", "swish"});
  fields.in_range("latent_channels", c.latent_channels, 1, 1024);
  fields.in_range("length of decoder_block_out_channels", c.levels(), 2, 6);
  const auto length = [&](const char* key, const std::vector<int64_t>& list, int64_t expected) {
    LACUNA_CHECK(static_cast<int64_t>(list.size()) == expected,
                 "{}: {} has {} entries, expected {}", where, key, list.size(), expected);
  };
  length("layers_per_block", c.layers_per_block, c.levels() + 1);
  length("temporal_expansions", c.temporal_expansions, c.levels() - 1);
  length("spatial_expansions", c.spatial_expansions, c.levels() - 1);
  for (const int64_t channels : c.block_out_channels) {
    fields.in_range("decoder_block_out_channels", channels, 32, 4096);
    LACUNA_CHECK(channels % 32 == 0,
                 "{}: decoder_block_out_channels {}, expected multiples of 32, the norms' groups",
                 where, channels);
  }
  for (const int64_t n : c.layers_per_block) fields.in_range("layers_per_block", n, 1, 16);
  for (const int64_t n : c.temporal_expansions) fields.in_range("temporal_expansions", n, 1, 4);
  for (const int64_t n : c.spatial_expansions) fields.in_range("spatial_expansions", n, 1, 4);
  read_mochi_statistics(fields, where, c);
  return c;
}

}  // namespace lacuna
