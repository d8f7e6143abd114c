// SPDX-License-Identifier: Apache-2.0
// MochiConfig from config.json text.
#include "lacuna/core/error.h"
#include "lacuna/models/config_fields.h"
#include "lacuna/models/mochi/mochi_config.h"

namespace lacuna {

MochiConfig mochi_config_from_json(std::string_view json, std::string_view who) {
  const ConfigFields fields(json, who, "a Mochi config.json");
  fields.allow_only("_class_name", {"\"MochiTransformer3DModel\""});
  fields.allow_only("qk_norm", {"\"rms_norm\""});
  fields.allow_only("activation_fn", {"\"swiglu\""});
  fields.allow_only("quantization_config", {});

  MochiConfig config;
  fields.read_int("num_layers", config.num_layers, true);
  fields.read_int("num_attention_heads", config.num_heads, true);
  fields.read_int("attention_head_dim", config.head_dim, true);
  // Other joint families have such sizes too, but no text stream of a width of its own.
  fields.read_int("pooled_projection_dim", config.text_width, true);
  fields.read_int("in_channels", config.in_channels);
  config.out_channels = config.in_channels;
  fields.read_int("out_channels", config.out_channels);
  fields.read_int("text_embed_dim", config.text_dim);
  fields.read_int("time_embed_dim", config.freq_dim);
  fields.read_int("max_sequence_length", config.text_len);
  fields.read_int("patch_size", config.patch);
  try {
    config.validate();
  } catch (const Error& error) {
    fail("{}: {}", who, error.what());
  }
  LACUNA_CHECK(config.in_channels == config.out_channels,
               "{}: {} channels in and {} out, expected as many", who, config.in_channels,
               config.out_channels);
  return config;
}

}  // namespace lacuna
