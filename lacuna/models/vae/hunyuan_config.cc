// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/vae/hunyuan_config.h"

#include "lacuna/models/vae/config_fields.h"

namespace lacuna {

HunyuanVaeConfig parse_hunyuan_vae_config(std::string_view json_text, std::string_view where) {
  const nlohmann::json json = parse_vae_object(json_text, where);
  const ConfigFields fields(json, where);
  HunyuanVaeConfig c;
  c.latent_channels = fields.integer("latent_channels", c.latent_channels);
  c.block_out_channels = fields.integers("block_out_channels", c.block_out_channels);
  c.layers_per_block = fields.integer("layers_per_block", c.layers_per_block);
  const int64_t groups = fields.integer("norm_num_groups", c.norm_num_groups);
  c.mid_block_add_attention = fields.boolean("mid_block_add_attention", c.mid_block_add_attention);
  fields.must_be("out_channels", 3);
  fields.must_be("spatial_compression_ratio", HunyuanVaeConfig::kSpatialFactor);
  fields.must_be("temporal_compression_ratio", HunyuanVaeConfig::kTemporalFactor);
  fields.one_of("act_fn", {"silu", "swish"});
  if (fields.has("up_block_types")) {
    const auto& types = fields.list("up_block_types", 16);
    fields.in_range("length of up_block_types", static_cast<int64_t>(types.size()),
                    HunyuanVaeConfig::kLevels, HunyuanVaeConfig::kLevels);
    for (const auto& type : types) {
      fields.check_word(type, "up_block_types", {"HunyuanVideoUpBlock3D"});
    }
  }
  fields.in_range("latent_channels", c.latent_channels, 1, 1024);
  fields.in_range("layers_per_block", c.layers_per_block, 1, 16);
  fields.in_range("norm_num_groups", groups, 1, 1024);
  c.norm_num_groups = static_cast<int32_t>(groups);
  fields.in_range("length of block_out_channels", static_cast<int64_t>(c.block_out_channels.size()),
                  HunyuanVaeConfig::kLevels, HunyuanVaeConfig::kLevels);
  for (const int64_t channels : c.block_out_channels) {
    fields.in_range("block_out_channels", channels, 1, 4096);
    LACUNA_CHECK(channels % groups == 0,
                 "{}: block_out_channels {}, expected multiples of norm_num_groups = {}", where,
                 channels, groups);
  }
  c.scaling_factor = static_cast<float>(fields.number("scaling_factor", c.scaling_factor));
  const float scale = 1.0f / c.scaling_factor;
  LACUNA_CHECK(c.scaling_factor > 0.0f && std::isfinite(c.scaling_factor) && std::isfinite(scale),
               "{}: scaling_factor is {}, expected finite and positive", where, c.scaling_factor);
  return c;
}

}  // namespace lacuna
