// SPDX-License-Identifier: Apache-2.0
// WanConfig from config.json text and from tensor shapes.
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "lacuna/core/error.h"
#include "lacuna/models/config_fields.h"
#include "lacuna/models/wan/wan_config.h"

namespace lacuna {
namespace {

// What another network than plain text-to-video Wan would say.
void refuse_unsupported_fields(const ConfigFields& fields) {
  fields.allow_only("_class_name", {"\"WanTransformer3DModel\"", "\"WanModel\""});
  fields.allow_only("qk_norm", {"\"rms_norm_across_heads\"", "true"});
  fields.allow_only("window_size", {"[-1,-1]"});
  fields.allow_only("add_control_adapter", {"false"});
  // VACE and VSA-trained networks.
  for (const char* key :
       {"vace_layers", "vace_in_channels", "vace_in_dim", "vsa_sparsity", "quantization_config"}) {
    fields.allow_only(key, {});
  }
}

// Of diffusers' image-to-video networks.
void read_image_fields(const ConfigFields& fields, std::string_view who, WanConfig& config) {
  fields.read_int("image_dim", config.image_dim);
  fields.read_int("pos_embed_seq_len", config.image_positions);
  int64_t added = 0;
  fields.read_int("added_kv_proj_dim", added);
  const int64_t expected = config.image_dim > 0 ? config.dim() : 0;
  LACUNA_CHECK(added == expected, "{}: `added_kv_proj_dim` {} with `image_dim` {}, expected {}",
               who, added, config.image_dim, expected);
}

}  // namespace

WanConfig wan_config_from_json(std::string_view json, std::string_view who) {
  const ConfigFields fields(json, who, "a Wan config.json");
  refuse_unsupported_fields(fields);

  WanConfig config;
  if (fields.has("num_attention_heads")) {
    fields.read_int("num_attention_heads", config.num_heads);
    fields.read_int("attention_head_dim", config.head_dim, true);
    fields.read_int("in_channels", config.in_channels);
    fields.read_int("out_channels", config.out_channels);
  } else if (fields.has("dim")) {
    int64_t dim = 0;
    fields.read_int("dim", dim);
    fields.read_int("num_heads", config.num_heads, true);
    LACUNA_CHECK(config.num_heads > 0 && dim > 0 && dim % config.num_heads == 0,
                 "{}: `dim` {}, expected a positive multiple of `num_heads` {}", who, dim,
                 config.num_heads);
    config.head_dim = dim / config.num_heads;
    fields.read_int("in_dim", config.in_channels);
    fields.read_int("out_dim", config.out_channels);
  } else {
    fail("{}: neither `num_attention_heads` nor `dim`, expected a Wan config.json", who);
  }
  fields.read_int("num_layers", config.num_layers, true);
  fields.read_int("ffn_dim", config.ffn_dim, true);
  fields.read_int("text_dim", config.text_dim);
  fields.read_int("text_len", config.text_len);
  fields.read_int("freq_dim", config.freq_dim);
  fields.read_int("rope_max_seq_len", config.rope_max_positions);
  std::array<int64_t, 3> patch{config.patch_t, config.patch_h, config.patch_w};
  fields.read_ints("patch_size", patch);
  config.patch_t = patch[0], config.patch_h = patch[1], config.patch_w = patch[2];
  double eps = config.eps;
  fields.read_number("eps", eps);
  config.eps = static_cast<float>(eps);
  fields.read_bool("cross_attn_norm", config.cross_attn_norm);
  read_image_fields(fields, who, config);
  try {
    config.validate();
  } catch (const Error& error) {
    fail("{}: {}", who, error.what());
  }
  if (config.condition_channels() > 0)
    fields.allow_only("model_type", {"\"i2v\"", "\"flf2v\""});
  else
    fields.allow_only("model_type", {"\"t2v\"", "\"ti2v\""});
  return config;
}

void read_image_sizes(const WeightSource& source,
                      const std::function<std::string(std::string_view)>& rename,
                      std::string_view who, WanConfig& config) {
  // The size of one dimension; 0 where there is no such tensor.
  const auto size_of = [&](std::string_view name, size_t rank, size_t dimension) -> int64_t {
    const std::string stored = rename ? rename(name) : std::string(name);
    if (!source.has(stored)) return 0;
    const std::vector<int64_t> shape = source.shape(stored);
    LACUNA_CHECK(shape.size() == rank, "wan: {}: `{}` has {} dimensions, expected {}",
                 source.describe(), stored, shape.size(), rank);
    return shape[dimension];
  };
  const int64_t dim = size_of("condition_embedder.image_embedder.ff.net.0.proj.weight", 2, 1);
  const int64_t positions = size_of("condition_embedder.image_embedder.pos_embed", 3, 1);
  const auto take = [&](const char* name, int64_t stored, int64_t& said) {
    LACUNA_CHECK(said == 0 || said == stored, "{}: `{}` is {}, expected {} as in {}", who, name,
                 said, stored, source.describe());
    said = stored;
  };
  take("image_dim", dim, config.image_dim);
  take("pos_embed_seq_len", positions, config.image_positions);
  try {
    config.validate();
  } catch (const Error& error) {
    fail("{}: {}", who, error.what());
  }
}

WanConfig infer_wan_config(const WeightSource& source,
                           const std::function<std::string(std::string_view)>& rename) {
  const auto stored_name = [&](std::string_view name) {
    std::string stored = rename ? rename(name) : std::string(name);
    LACUNA_CHECK(source.has(stored), "wan: {} lacks `{}`, expected it to tell the sizes",
                 source.describe(), stored);
    return stored;
  };
  const auto shape_of = [&](std::string_view name, size_t rank) {
    const std::string stored = stored_name(name);
    std::vector<int64_t> shape = source.shape(stored);
    LACUNA_CHECK(shape.size() == rank, "wan: {}: `{}` has {} dimensions, expected {}",
                 source.describe(), stored, shape.size(), rank);
    return shape;
  };
  WanConfig config;
  std::vector<int64_t> patch = source.shape(stored_name("patch_embedding.weight"));
  if (patch.size() == 4 && patch[1] == 1) {  // stable-diffusion.cpp: [out * in, 1, h, w]
    const int64_t out = shape_of("patch_embedding.bias", 1)[0], filters = patch[0];
    LACUNA_CHECK(out > 0 && filters % out == 0,
                 "wan: {}: `patch_embedding.weight` has {} filters, expected a multiple of {}",
                 source.describe(), filters, out);
    patch[0] = filters / out;
    patch.insert(patch.begin(), out);
  } else {
    patch = shape_of("patch_embedding.weight", 5);
  }
  const int64_t dim = patch[0];
  LACUNA_CHECK(
      dim > 0 && dim % 128 == 0,
      "wan: {}: width {}, expected a multiple of 128; other head widths need a config.json",
      source.describe(), dim);
  config.head_dim = 128;
  config.num_heads = dim / 128;
  config.in_channels = patch[1];
  for (size_t axis = 2; axis < 5; ++axis) {  // before they are multiplied
    LACUNA_CHECK(patch[axis] >= 1 && patch[axis] <= 16,
                 "wan: {}: `patch_embedding.weight` has a patch of {}, expected 1..16",
                 source.describe(), patch[axis]);
  }
  config.patch_t = patch[2];
  config.patch_h = patch[3];
  config.patch_w = patch[4];
  config.ffn_dim = shape_of("blocks.0.ffn.net.0.proj.weight", 2)[0];
  config.text_dim = shape_of("condition_embedder.text_embedder.linear_1.weight", 2)[1];
  config.freq_dim = shape_of("condition_embedder.time_embedder.linear_1.weight", 2)[1];
  const int64_t rows = shape_of("proj_out.weight", 2)[0];
  const int64_t volume = config.patch_volume();
  LACUNA_CHECK(rows % volume == 0,
               "wan: {}: {} output rows, expected a multiple of the patch volume {}",
               source.describe(), rows, volume);
  config.out_channels = rows / volume;
  constexpr int64_t kMaxLayers = 256;
  while (config.num_layers <= kMaxLayers) {
    const std::string name = fmt::format("blocks.{}.attn1.norm_q.weight", config.num_layers);
    if (!source.has(rename ? rename(name) : name)) break;
    ++config.num_layers;
  }
  read_image_sizes(source, rename, source.describe(), config);
  return config;
}

}  // namespace lacuna
