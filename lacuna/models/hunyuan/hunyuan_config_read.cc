// SPDX-License-Identifier: Apache-2.0
// HunyuanConfig from config.json text.
#include "lacuna/core/error.h"
#include "lacuna/models/config_fields.h"
#include "lacuna/models/hunyuan/hunyuan_config.h"

namespace lacuna {
namespace {

// What another network than text-to-video HunyuanVideo 1.0 would say.
void refuse_other_networks(const ConfigFields& fields) {
  fields.allow_only("_class_name", {"\"HunyuanVideoTransformer3DModel\""});
  fields.allow_only("qk_norm", {"\"rms_norm\""});
  // Image-to-video, HunyuanVideo 1.5, FramePack, quantised by their loader.
  for (const char* key : {"image_condition_type", "text_embed_2_dim", "image_embed_dim",
                          "target_size", "task_type", "use_meanflow", "has_image_proj",
                          "image_proj_dim", "has_clean_x_embedder", "quantization_config"}) {
    fields.allow_only(key, {});
  }
}

}  // namespace

HunyuanConfig hunyuan_config_from_json(std::string_view json, std::string_view who) {
  const ConfigFields fields(json, who, "a HunyuanVideo config.json");
  refuse_other_networks(fields);
  HunyuanConfig config;
  fields.read_int("num_attention_heads", config.num_heads, true);
  fields.read_int("attention_head_dim", config.head_dim, true);
  fields.read_int("num_layers", config.num_layers, true);
  fields.read_int("num_single_layers", config.num_single_layers, true);
  fields.read_int("num_refiner_layers", config.num_refiner_layers);
  fields.read_int("in_channels", config.channels);
  int64_t out_channels = config.channels;
  fields.read_int("out_channels", out_channels);
  fields.read_number("mlp_ratio", config.mlp_ratio);
  fields.read_int("patch_size", config.patch_side);
  fields.read_int("patch_size_t", config.patch_t);
  fields.read_int("text_embed_dim", config.text_dim);
  fields.read_int("pooled_projection_dim", config.pooled_dim);
  fields.read_bool("guidance_embeds", config.guidance_embeds);
  fields.read_number("rope_theta", config.rope_theta);
  fields.read_ints("rope_axes_dim", config.rope_channels);
  try {
    config.validate();
  } catch (const Error& error) {
    fail("{}: {}", who, error.what());
  }
  LACUNA_CHECK(out_channels == config.channels,
               "{}: {} channels in and {} out, expected as many (image-to-video networks are not "
               "supported)",
               who, config.channels, out_channels);
  return config;
}

}  // namespace lacuna
