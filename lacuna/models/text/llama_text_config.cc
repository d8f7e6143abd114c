// SPDX-License-Identifier: Apache-2.0
// Sizes and tensor names of Llama text encoders.
#include <fmt/format.h>

#include <array>

#include "lacuna/core/error.h"
#include "lacuna/models/text/encoder_config.h"
#include "lacuna/models/text/hostile_json.h"
#include "lacuna/models/text/llama_text.h"

namespace lacuna {
namespace {

using LlamaJson = nlohmann::json;

constexpr int64_t kMostLlamaLayers = 256;

struct LlamaNamePair {
  std::string_view hugging_face, gguf;
};

// Inside a layer; prefixes `layers.i.`, `blk.i.`.
constexpr std::array kLlamaLayerNames = {
    LlamaNamePair{"input_layernorm.weight", "attn_norm.weight"},
    LlamaNamePair{"self_attn.q_proj.weight", "attn_q.weight"},
    LlamaNamePair{"self_attn.k_proj.weight", "attn_k.weight"},
    LlamaNamePair{"self_attn.v_proj.weight", "attn_v.weight"},
    LlamaNamePair{"self_attn.o_proj.weight", "attn_output.weight"},
    LlamaNamePair{"post_attention_layernorm.weight", "ffn_norm.weight"},
    LlamaNamePair{"mlp.gate_proj.weight", "ffn_gate.weight"},
    LlamaNamePair{"mlp.up_proj.weight", "ffn_up.weight"},
    LlamaNamePair{"mlp.down_proj.weight", "ffn_down.weight"},
};

// The integer called `key`, or `absent` where it is missing or null, as transformers writes it.
int64_t optional_int(const LlamaJson& config, const char* key, int64_t absent,
                     std::string_view who) {
  const auto it = config.find(key);
  return it == config.end() || it->is_null() ? absent : config_int(config, key, who);
}

// Version 5 of transformers keeps base and kind of the rotation in `rope_parameters`, older ones
// the base beside `rope_scaling`.
double rope_theta_of(const LlamaJson& config, std::string_view who) {
  double theta = config_number(config, "rope_theta", 10000.0, who);
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    const auto it = config.find(key);
    if (it == config.end() || it->is_null()) continue;
    LACUNA_CHECK(it->is_object(), "{}: `{}` {}, expected an object or null", who, key,
                 shown_json(*it));
    for (const char* kind : {"rope_type", "type"}) {
      const LlamaJson type = it->value(kind, LlamaJson("default"));
      LACUNA_CHECK(type == "default", "{}: `{}` of `{}` {}, expected \"default\"", who, kind, key,
                   shown_json(type));
    }
    theta = config_number(*it, "rope_theta", theta, who);
  }
  return theta;
}

}  // namespace

void LlamaConfig::validate() const {
  check_config_size("llama", "vocab_size", vocab_size, int64_t{1} << 24);
  check_config_size("llama", "hidden_size", dim, 1 << 16);
  check_config_size("llama", "num_attention_heads", num_heads, 1024);
  check_config_size("llama", "num_key_value_heads", num_kv_heads, num_heads);
  LACUNA_CHECK(num_heads % num_kv_heads == 0,
               "llama: num_key_value_heads {}, expected a divisor of {} heads", num_kv_heads,
               num_heads);
  check_config_size("llama", "head_dim", head_dim, 1024);
  LACUNA_CHECK(head_dim % 2 == 0, "llama: head_dim {}, expected an even number", head_dim);
  check_config_size("llama", "intermediate_size", ffn_dim, 1 << 20);
  check_config_size("llama", "num_hidden_layers", num_layers, kMostLlamaLayers);
  LACUNA_CHECK(eps > 0.0f && eps < 1.0f, "llama: rms_norm_eps {}, expected between 0 and 1", eps);
  LACUNA_CHECK(rope_theta >= 1.0 && rope_theta <= 1e12, "llama: rope_theta {}, expected 1 to 1e12",
               rope_theta);
}

LlamaConfig llama_config_from_json(std::string_view json, std::string_view who) {
  const LlamaJson parsed = parse_encoder_config(json, who);
  expect_config_if_any(parsed, "model_type", "llama", who);
  expect_config_if_any(parsed, "hidden_act", "silu", who);
  expect_config_if_any(parsed, "attention_bias", false, who);
  expect_config_if_any(parsed, "mlp_bias", false, who);
  LlamaConfig config;
  config.vocab_size = config_int(parsed, "vocab_size", who);
  config.dim = config_int(parsed, "hidden_size", who);
  config.num_heads = config_int(parsed, "num_attention_heads", who);
  config.num_kv_heads = optional_int(parsed, "num_key_value_heads", config.num_heads, who);
  config.ffn_dim = config_int(parsed, "intermediate_size", who);
  config.num_layers = config_int(parsed, "num_hidden_layers", who);
  config.eps = static_cast<float>(config_number(parsed, "rms_norm_eps", 1e-6, who));
  config.rope_theta = rope_theta_of(parsed, who);
  try {
    check_config_size("llama", "num_attention_heads", config.num_heads, 1024);
    config.head_dim = optional_int(parsed, "head_dim", config.dim / config.num_heads, who);
    config.validate();
  } catch (const Error& error) {
    fail("{}: {}", who, error.what());
  }
  return config;
}

std::string llama_source_name(std::string_view name, const LlamaNames& names) {
  if (name == "embed_tokens.weight")
    return names.gguf ? "token_embd.weight" : names.prefix + std::string(name);
  constexpr std::string_view kLayers = "layers.";
  if (name.starts_with(kLayers)) {
    const std::string_view rest = name.substr(kLayers.size());
    const size_t digits = rest.find_first_not_of("0123456789");
    if (digits != std::string_view::npos && digits > 0 && rest[digits] == '.') {
      for (const LlamaNamePair& pair : kLlamaLayerNames) {
        if (pair.hugging_face != rest.substr(digits + 1)) continue;
        return names.gguf ? fmt::format("blk.{}.{}", rest.substr(0, digits), pair.gguf)
                          : names.prefix + std::string(name);
      }
    }
  }
  fail("llama: tensor `{}`, expected one of the encoder's names", name);
}

LlamaNames detect_llama_names(const WeightSource& source) {
  std::vector<LlamaNames> candidates = {{false, "model."}, {false, ""}};
  for (const std::string& prefix : prefixes_of(source, "embed_tokens.weight"))
    candidates.push_back({false, prefix});
  candidates.push_back({true, ""});
  for (const LlamaNames& names : candidates) {
    if (!source.has(llama_source_name("embed_tokens.weight", names)) ||
        !source.has(llama_source_name("layers.0.self_attn.q_proj.weight", names)))
      continue;
    LACUNA_CHECK(!names.gguf || !source.has("rope_freqs.weight"),
                 "llama: {} holds `rope_freqs.weight`, expected a Llama whose positions are not "
                 "scaled",
                 source.describe());
    return names;
  }
  fail(
      "llama: {} holds none of `model.layers.0.self_attn.q_proj.weight`, "
      "`layers.0.self_attn.q_proj.weight`, `blk.0.attn_q.weight` with its embedding; expected a "
      "Llama",
      source.describe());
}

LlamaConfig infer_llama_config(const WeightSource& source, const LlamaNames& names) {
  const auto shape_of = [&](std::string_view rest) {
    const std::string name = llama_source_name(rest, names);
    LACUNA_CHECK(source.has(name), "llama: {} lacks `{}`, expected it to tell the sizes",
                 source.describe(), name);
    std::vector<int64_t> shape = source.shape(name);
    LACUNA_CHECK(shape.size() == 2, "llama: {}: `{}` has {} dimensions, expected 2",
                 source.describe(), name, shape.size());
    return shape;
  };
  LlamaConfig config;
  const auto heads_of = [&](std::string_view rest) {
    const int64_t rows = shape_of(rest)[0];
    LACUNA_CHECK(rows % config.head_dim == 0, "llama: {}: `{}` has {} rows, expected heads of {}",
                 source.describe(), llama_source_name(rest, names), rows, config.head_dim);
    return rows / config.head_dim;
  };
  config.vocab_size = shape_of("embed_tokens.weight")[0];
  config.dim = shape_of("embed_tokens.weight")[1];
  config.num_heads = heads_of("layers.0.self_attn.q_proj.weight");
  config.num_kv_heads = heads_of("layers.0.self_attn.k_proj.weight");
  config.ffn_dim = shape_of("layers.0.mlp.gate_proj.weight")[0];
  config.num_layers = 0;
  while (config.num_layers <= kMostLlamaLayers &&
         source.has(llama_source_name(
             fmt::format("layers.{}.self_attn.q_proj.weight", config.num_layers), names)))
    ++config.num_layers;
  config.validate();
  return config;
}

}  // namespace lacuna
