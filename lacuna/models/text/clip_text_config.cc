// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>

#include "lacuna/core/error.h"
#include "lacuna/models/text/clip_text.h"
#include "lacuna/models/text/encoder_config.h"

namespace lacuna {
namespace {

constexpr int64_t kMostClipLayers = 256;

}  // namespace

void ClipTextConfig::validate() const {
  check_config_size("clip", "vocab_size", vocab_size, int64_t{1} << 24);
  check_config_size("clip", "hidden_size", dim, 1 << 16);
  check_config_size("clip", "num_attention_heads", num_heads, 1024);
  LACUNA_CHECK(dim % num_heads == 0 && head_dim() <= 1024,
               "clip: hidden_size {} in {} heads, expected whole heads of at most 1024", dim,
               num_heads);
  check_config_size("clip", "intermediate_size", ffn_dim, 1 << 20);
  check_config_size("clip", "num_hidden_layers", num_layers, kMostClipLayers);
  check_config_size("clip", "max_position_embeddings", max_tokens, 4096);
  LACUNA_CHECK(eps > 0.0f && eps < 1.0f, "clip: layer_norm_eps {}, expected between 0 and 1", eps);
  LACUNA_CHECK(end_token >= 0 && end_token < vocab_size, "clip: eos_token_id {}, expected 0 to {}",
               end_token, vocab_size - 1);
}

ClipTextConfig clip_text_config_from_json(std::string_view json, std::string_view who) {
  const nlohmann::json parsed = parse_encoder_config(json, who);
  expect_config_if_any(parsed, "model_type", "clip_text_model", who);
  expect_config_if_any(parsed, "hidden_act", "quick_gelu", who);
  ClipTextConfig config;
  config.vocab_size = config_int(parsed, "vocab_size", who);
  config.dim = config_int(parsed, "hidden_size", who);
  config.num_heads = config_int(parsed, "num_attention_heads", who);
  config.ffn_dim = config_int(parsed, "intermediate_size", who);
  config.num_layers = config_int(parsed, "num_hidden_layers", who);
  config.max_tokens = config_int(parsed, "max_position_embeddings", who);
  config.eps = static_cast<float>(config_number(parsed, "layer_norm_eps", config.eps, who));
  config.end_token = config_int(parsed, "eos_token_id", who);
  try {
    config.validate();
  } catch (const Error& error) {
    fail("{}: {}", who, error.what());
  }
  return config;
}

std::string detect_clip_text_prefix(const WeightSource& source) {
  for (const char* known : {"text_model.", ""})
    if (source.has(known + std::string(kClipTokenEmbedding))) return known;
  std::vector<std::string> prefixes = prefixes_of(source, kClipTokenEmbedding);
  LACUNA_CHECK(!prefixes.empty(), "clip: {} holds no `text_model.{}`, expected a CLIP text encoder",
               source.describe(), kClipTokenEmbedding);
  return prefixes.front();
}

ClipTextConfig infer_clip_text_config(const WeightSource& source, const std::string& prefix) {
  const auto shape_of = [&](std::string_view rest) {
    const std::string name = prefix + std::string(rest);
    LACUNA_CHECK(source.has(name), "clip: {} lacks `{}`, expected it to tell the sizes",
                 source.describe(), name);
    std::vector<int64_t> shape = source.shape(name);
    LACUNA_CHECK(shape.size() == 2, "clip: {}: `{}` has {} dimensions, expected 2",
                 source.describe(), name, shape.size());
    return shape;
  };
  ClipTextConfig config;
  config.vocab_size = shape_of(kClipTokenEmbedding)[0];
  config.dim = shape_of(kClipTokenEmbedding)[1];
  config.max_tokens = shape_of("embeddings.position_embedding.weight")[0];
  config.ffn_dim = shape_of("encoder.layers.0.mlp.fc1.weight")[0];
  config.num_heads = std::max<int64_t>(1, config.dim / 64);
  config.num_layers = 0;
  while (config.num_layers <= kMostClipLayers &&
         source.has(fmt::format("{}encoder.layers.{}.mlp.fc1.weight", prefix, config.num_layers)))
    ++config.num_layers;
  config.validate();
  return config;
}

}  // namespace lacuna
