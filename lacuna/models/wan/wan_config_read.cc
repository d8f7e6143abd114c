// SPDX-License-Identifier: Apache-2.0
// WanConfig from config.json text and from tensor shapes.
#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "lacuna/core/error.h"
#include "lacuna/models/wan/wan_config.h"

namespace lacuna {
namespace {

using Json = nlohmann::json;

class Fields {
 public:
  Fields(const Json& json, std::string_view who) : json_(json), who_(who) {}

  // Present and not null.
  const Json* find(const std::string& key) const {
    const auto it = json_.find(key);
    return it == json_.end() || it->is_null() ? nullptr : &*it;
  }

  void read_int(const std::string& key, int64_t& into, bool required = false) const {
    const Json* value = find(key);
    if (value == nullptr) {
      LACUNA_CHECK(!required, "{}: no `{}`, expected an integer", who_, key);
      return;
    }
    into = integer(*value, key);
  }

  void read_number(const std::string& key, double& into) const {
    const Json* value = find(key);
    if (value == nullptr) return;
    LACUNA_CHECK(value->is_number(), "{}: `{}` is {}, expected a number", who_, key, show(*value));
    into = value->get<double>();
  }

  void read_bool(const std::string& key, bool& into) const {
    const Json* value = find(key);
    if (value == nullptr) return;
    LACUNA_CHECK(value->is_boolean(), "{}: `{}` is {}, expected true or false", who_, key,
                 show(*value));
    into = value->get<bool>();
  }

  void read_patch(WanConfig& config) const {
    const Json* value = find("patch_size");
    if (value == nullptr) return;
    LACUNA_CHECK(value->is_array() && value->size() == 3,
                 "{}: `patch_size` is {}, expected three integers", who_, show(*value));
    config.patch_t = integer((*value)[0], "patch_size[0]");
    config.patch_h = integer((*value)[1], "patch_size[1]");
    config.patch_w = integer((*value)[2], "patch_size[2]");
  }

  // The field may be absent, null, or one of `allowed` written as JSON.
  void allow_only(const std::string& key, std::initializer_list<std::string_view> allowed) const {
    const Json* value = find(key);
    if (value == nullptr) return;
    const std::string given = show(*value);
    std::string list;
    for (const std::string_view text : allowed) {
      if (given == text) return;
      list += (list.empty() ? "" : " or ") + std::string(text);
    }
    fail("{}: `{}` is {}, not supported, expected {}", who_, key, given,
         list.empty() ? "null or no such field" : list);
  }

 private:
  // Nested values are only named: dumping recurses, and a hostile file may nest very deeply.
  static std::string show(const Json& value) {
    const auto flat = [](const Json& part) { return !part.is_structured(); };
    constexpr size_t kMaxShown = 8;
    if (value.is_object()) return "an object";
    if (value.is_array() &&
        (value.size() > kMaxShown || !std::all_of(value.begin(), value.end(), flat))) {
      return "an array";
    }
    std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
    if (text.size() > 60) text = text.substr(0, 57) + "...";
    return text;
  }

  int64_t integer(const Json& value, const std::string& key) const {
    const bool fits = value.is_number_integer() &&
                      (!value.is_number_unsigned() || value.get<uint64_t>() <= uint64_t{1} << 62);
    LACUNA_CHECK(fits, "{}: `{}` is {}, expected an integer", who_, key, show(value));
    return value.get<int64_t>();
  }

  const Json& json_;
  std::string_view who_;
};

// What another network than plain text-to-video Wan would say.
void refuse_unsupported_fields(const Fields& fields) {
  fields.allow_only("_class_name", {"\"WanTransformer3DModel\"", "\"WanModel\""});
  fields.allow_only("model_type", {"\"t2v\"", "\"ti2v\""});
  fields.allow_only("qk_norm", {"\"rms_norm_across_heads\"", "true"});
  fields.allow_only("window_size", {"[-1,-1]"});
  fields.allow_only("add_control_adapter", {"false"});
  // Image-conditioned (I2V, FLF2V), VACE and VSA-trained networks.
  for (const char* key :
       {"image_dim", "added_kv_proj_dim", "pos_embed_seq_len", "vace_layers", "vace_in_channels",
        "vace_in_dim", "vsa_sparsity", "quantization_config"}) {
    fields.allow_only(key, {});
  }
}

void refuse_image_channels(const WanConfig& config, std::string_view who) {
  LACUNA_CHECK(config.in_channels == config.out_channels,
               "{}: {} channels in and {} out, expected as many (image-to-video, Fun-Control and "
               "Fun-InP networks are not supported)",
               who, config.in_channels, config.out_channels);
}

}  // namespace

WanConfig wan_config_from_json(std::string_view json, std::string_view who) {
  constexpr size_t kMaxBytes = 1 << 20;
  LACUNA_CHECK(json.size() <= kMaxBytes, "{}: {} bytes, expected at most {}", who, json.size(),
               kMaxBytes);
  const Json parsed = Json::parse(json.begin(), json.end(), nullptr, /*allow_exceptions=*/false);
  LACUNA_CHECK(parsed.is_object(), "{}: not a JSON object, expected a Wan config.json", who);
  const Fields fields(parsed, who);
  refuse_unsupported_fields(fields);

  WanConfig config;
  if (fields.find("num_attention_heads") != nullptr) {
    fields.read_int("num_attention_heads", config.num_heads);
    fields.read_int("attention_head_dim", config.head_dim, true);
    fields.read_int("in_channels", config.in_channels);
    fields.read_int("out_channels", config.out_channels);
  } else if (fields.find("dim") != nullptr) {
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
  fields.read_patch(config);
  double eps = config.eps;
  fields.read_number("eps", eps);
  config.eps = static_cast<float>(eps);
  fields.read_bool("cross_attn_norm", config.cross_attn_norm);
  try {
    config.validate();
  } catch (const Error& error) {
    fail("{}: {}", who, error.what());
  }
  refuse_image_channels(config, who);
  return config;
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
  config.validate();
  refuse_image_channels(config, source.describe());
  return config;
}

}  // namespace lacuna
