// SPDX-License-Identifier: Apache-2.0
// Sizes and tensor names of T5 and UMT5 encoders.
#include <fmt/format.h>

#include <array>
#include <nlohmann/json.hpp>

#include "lacuna/core/error.h"
#include "lacuna/models/text/encoder_config.h"
#include "lacuna/models/text/umt5.h"

namespace lacuna {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMaxLayers = 256;

struct NamePair {
  std::string_view original, hugging_face, gguf;
};

// Inside a layer; prefixes `blocks.i.`, `encoder.block.i.`, `enc.blk.i.`.
constexpr std::array kLayerNames = {
    NamePair{"norm1.weight", "layer.0.layer_norm.weight", "attn_norm.weight"},
    NamePair{"attn.q.weight", "layer.0.SelfAttention.q.weight", "attn_q.weight"},
    NamePair{"attn.k.weight", "layer.0.SelfAttention.k.weight", "attn_k.weight"},
    NamePair{"attn.v.weight", "layer.0.SelfAttention.v.weight", "attn_v.weight"},
    NamePair{"attn.o.weight", "layer.0.SelfAttention.o.weight", "attn_o.weight"},
    NamePair{"pos_embedding.embedding.weight",
             "layer.0.SelfAttention.relative_attention_bias.weight", "attn_rel_b.weight"},
    NamePair{"norm2.weight", "layer.1.layer_norm.weight", "ffn_norm.weight"},
    NamePair{"ffn.gate.0.weight", "layer.1.DenseReluDense.wi_0.weight", "ffn_gate.weight"},
    NamePair{"ffn.fc1.weight", "layer.1.DenseReluDense.wi_1.weight", "ffn_up.weight"},
    NamePair{"ffn.fc2.weight", "layer.1.DenseReluDense.wo.weight", "ffn_down.weight"},
};

constexpr std::array kGlobalNames = {
    NamePair{"token_embedding.weight", "shared.weight", "token_embd.weight"},
    NamePair{"norm.weight", "encoder.final_layer_norm.weight", "enc.output_norm.weight"},
};

std::string_view pick(const NamePair& pair, Umt5Naming naming) {
  switch (naming) {
    case Umt5Naming::hugging_face:
      return pair.hugging_face;
    case Umt5Naming::gguf:
      return pair.gguf;
    default:
      return pair.original;
  }
}

std::string_view layer_prefix(Umt5Naming naming) {
  switch (naming) {
    case Umt5Naming::hugging_face:
      return "encoder.block.";
    case Umt5Naming::gguf:
      return "enc.blk.";
    default:
      return "blocks.";
  }
}

}  // namespace

void Umt5Config::validate() const {
  check_config_size("umt5", "vocab_size", vocab_size, int64_t{1} << 24);
  check_config_size("umt5", "dim", dim, 1 << 16);
  check_config_size("umt5", "num_heads", num_heads, 1024);
  check_config_size("umt5", "head_dim", head_dim, 1024);
  check_config_size("umt5", "ffn_dim", ffn_dim, 1 << 20);
  check_config_size("umt5", "num_layers", num_layers, kMaxLayers);
  LACUNA_CHECK(eps > 0.0f && eps < 1.0f, "umt5: eps {}, expected between 0 and 1", eps);
}

int64_t Umt5Config::num_parameters() const {
  const int64_t layer = 2 * dim + 4 * dim * inner_dim() + 3 * dim * ffn_dim;
  const int64_t bias = kUmt5Buckets * num_heads * (shared_bias ? 1 : num_layers);
  return vocab_size * dim + num_layers * layer + bias + dim;
}

Umt5Config umt5_preset(std::string_view name) {
  if (name == "umt5-xxl") return {};
  if (name == "t5-xxl") return {.vocab_size = 32128, .shared_bias = true};
  if (name == "tiny") {
    return {.vocab_size = 1200,
            .dim = 64,
            .num_heads = 4,
            .head_dim = 16,
            .ffn_dim = 160,
            .num_layers = 3};
  }
  fail("umt5: preset `{}`, expected umt5-xxl, t5-xxl or tiny", name);
}

Umt5Config umt5_config_from_json(std::string_view json, std::string_view who) {
  const Json parsed = parse_encoder_config(json, who);
  expect_config_if_any(parsed, "relative_attention_num_buckets", kUmt5Buckets, who);
  expect_config_if_any(parsed, "relative_attention_max_distance", 128, who);
  Umt5Config config;
  config.shared_bias = parsed.value("model_type", Json("umt5")) == "t5";
  if (!config.shared_bias) expect_config_if_any(parsed, "model_type", "umt5", who);
  // transformers writes both the old combined field and the two it stands for. A T5 without it is
  // the first T5, whose feed-forward is not gated.
  if (config.shared_bias || parsed.contains("feed_forward_proj"))
    expect_config(parsed, "feed_forward_proj", "gated-gelu", who);
  config.vocab_size = config_int(parsed, "vocab_size", who);
  config.dim = config_int(parsed, "d_model", who);
  config.num_heads = config_int(parsed, "num_heads", who);
  config.head_dim = config_int(parsed, "d_kv", who);
  config.ffn_dim = config_int(parsed, "d_ff", who);
  config.num_layers = config_int(parsed, "num_layers", who);
  config.eps = static_cast<float>(config_number(parsed, "layer_norm_epsilon", config.eps, who));
  try {
    config.validate();
  } catch (const Error& error) {
    fail("{}: {}", who, error.what());
  }
  return config;
}

std::string umt5_source_name(std::string_view original, const Umt5Names& names) {
  for (const NamePair& pair : kGlobalNames) {
    if (pair.original != original) continue;
    if (names.tied_embedding && original == "token_embedding.weight") {
      return names.prefix + "encoder.embed_tokens.weight";
    }
    return names.prefix + std::string(pick(pair, names.naming));
  }
  constexpr std::string_view kBlocks = "blocks.";
  if (original.starts_with(kBlocks)) {
    const std::string_view rest = original.substr(kBlocks.size());
    const size_t digits = rest.find_first_not_of("0123456789");
    if (digits != std::string_view::npos && digits > 0 && rest[digits] == '.') {
      for (const NamePair& pair : kLayerNames) {
        if (pair.original != rest.substr(digits + 1)) continue;
        return fmt::format("{}{}{}.{}", names.prefix, layer_prefix(names.naming),
                           rest.substr(0, digits), pick(pair, names.naming));
      }
    }
  }
  fail("umt5: tensor `{}`, expected one of the encoder's names", original);
}

Umt5Names detect_umt5_names(const WeightSource& source) {
  const auto complete = [&](Umt5Naming naming, const std::string& prefix) {
    return source.has(umt5_source_name("blocks.0.attn.q.weight", {naming, prefix})) &&
           source.has(umt5_source_name("norm.weight", {naming, prefix}));
  };
  // Single-file exports put a prefix in front of every name; find it at the final norm.
  std::vector<std::string> prefixes = prefixes_of(source, "encoder.final_layer_norm.weight");
  prefixes.insert(prefixes.begin(), "");
  for (const std::string& prefix : prefixes) {
    for (const Umt5Naming naming :
         {Umt5Naming::original, Umt5Naming::hugging_face, Umt5Naming::gguf}) {
      if (!complete(naming, prefix)) continue;
      Umt5Names names{naming, prefix};
      names.tied_embedding =
          naming == Umt5Naming::hugging_face && !source.has(prefix + "shared.weight");
      return names;
    }
  }
  fail(
      "umt5: {} holds none of `blocks.0.attn.q.weight`, "
      "`encoder.block.0.layer.0.SelfAttention.q.weight`, `enc.blk.0.attn_q.weight`; expected a "
      "T5 or UMT5 encoder",
      source.describe());
}

Umt5Config infer_umt5_config(const WeightSource& source, const Umt5Names& names) {
  const auto shape_of = [&](std::string_view original) {
    const std::string name = umt5_source_name(original, names);
    LACUNA_CHECK(source.has(name), "umt5: {} lacks `{}`, expected it to tell the sizes",
                 source.describe(), name);
    std::vector<int64_t> shape = source.shape(name);
    LACUNA_CHECK(shape.size() == 2, "umt5: {}: `{}` has {} dimensions, expected 2",
                 source.describe(), name, shape.size());
    return shape;
  };
  Umt5Config config;
  config.vocab_size = shape_of("token_embedding.weight")[0];
  config.dim = shape_of("token_embedding.weight")[1];
  config.num_heads = shape_of("blocks.0.pos_embedding.embedding.weight")[1];
  config.ffn_dim = shape_of("blocks.0.ffn.gate.0.weight")[0];
  const int64_t inner = shape_of("blocks.0.attn.q.weight")[0];
  LACUNA_CHECK(config.num_heads > 0 && inner % config.num_heads == 0,
               "umt5: {}: {} query channels, expected a multiple of {} heads", source.describe(),
               inner, config.num_heads);
  config.head_dim = inner / config.num_heads;
  config.num_layers = 0;
  while (config.num_layers <= kMaxLayers &&
         source.has(
             umt5_source_name(fmt::format("blocks.{}.attn.q.weight", config.num_layers), names))) {
    ++config.num_layers;
  }
  config.shared_bias =
      config.num_layers > 1 &&
      !source.has(umt5_source_name("blocks.1.pos_embedding.embedding.weight", names));
  config.validate();
  return config;
}

}  // namespace lacuna
