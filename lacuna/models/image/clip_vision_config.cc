// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>

#include "lacuna/core/error.h"
#include "lacuna/models/image/clip_vision.h"
#include "lacuna/models/text/encoder_config.h"

namespace lacuna {
namespace {

constexpr std::string_view kClipVision = "clip vision";
constexpr int64_t kMostVisionLayers = 256;

}  // namespace

void ClipVisionConfig::validate() const {
  check_config_size(kClipVision, "image_size", image_size, 1024);
  check_config_size(kClipVision, "patch_size", patch_size, image_size);
  LACUNA_CHECK(image_size % patch_size == 0 && patches() <= 4096,
               "clip vision: image_size {} in patches of {}, expected whole patches, at most 4096",
               image_size, patch_size);
  check_config_size(kClipVision, "hidden_size", dim, 1 << 14);
  check_config_size(kClipVision, "num_attention_heads", num_heads, 1024);
  LACUNA_CHECK(dim % num_heads == 0 && head_dim() <= 1024,
               "clip vision: hidden_size {} in {} heads, expected whole heads of at most 1024", dim,
               num_heads);
  check_config_size(kClipVision, "intermediate_size", ffn_dim, 1 << 17);
  LACUNA_CHECK(num_layers >= 2 && num_layers <= kMostVisionLayers,
               "clip vision: num_hidden_layers {}, expected 2 to {}", num_layers,
               kMostVisionLayers);
  LACUNA_CHECK(eps > 0.0f && eps < 1.0f, "clip vision: layer_norm_eps {}, expected between 0 and 1",
               eps);
}

ClipVisionConfig clip_vision_config_from_json(std::string_view json, std::string_view who) {
  const nlohmann::json parsed = parse_encoder_config(json, who);
  expect_config_if_any(parsed, "model_type", "clip_vision_model", who);
  expect_config_if_any(parsed, "num_channels", 3, who);
  ClipVisionConfig config;
  config.image_size = config_int(parsed, "image_size", who);
  config.patch_size = config_int(parsed, "patch_size", who);
  config.dim = config_int(parsed, "hidden_size", who);
  config.num_heads = config_int(parsed, "num_attention_heads", who);
  config.ffn_dim = config_int(parsed, "intermediate_size", who);
  config.num_layers = config_int(parsed, "num_hidden_layers", who);
  config.eps = static_cast<float>(config_number(parsed, "layer_norm_eps", config.eps, who));
  // What transformers takes where the file does not say.
  config.activation = ClipActivation::quick_gelu;
  if (parsed.contains("hidden_act") && parsed["hidden_act"] != "quick_gelu") {
    expect_config(parsed, "hidden_act", "gelu", who);
    config.activation = ClipActivation::gelu;
  }
  try {
    config.validate();
  } catch (const Error& error) {
    fail("{}: {}", who, error.what());
  }
  return config;
}

std::string detect_clip_vision_prefix(const WeightSource& source) {
  for (const char* known : {"vision_model.", ""})
    if (source.has(known + std::string(kClipClassEmbedding))) return known;
  std::vector<std::string> prefixes = prefixes_of(source, kClipClassEmbedding);
  LACUNA_CHECK(!prefixes.empty(),
               "clip vision: {} holds no `vision_model.{}`, expected a CLIP vision encoder",
               source.describe(), kClipClassEmbedding);
  return prefixes.front();
}

ClipVisionConfig infer_clip_vision_config(const WeightSource& source, const std::string& prefix) {
  const auto shape_of = [&](std::string_view rest, size_t rank) {
    const std::string name = prefix + std::string(rest);
    LACUNA_CHECK(source.has(name), "clip vision: {} lacks `{}`, expected it to tell the sizes",
                 source.describe(), name);
    std::vector<int64_t> shape = source.shape(name);
    LACUNA_CHECK(shape.size() == rank, "clip vision: {}: `{}` has {} dimensions, expected {}",
                 source.describe(), name, shape.size(), rank);
    return shape;
  };
  ClipVisionConfig config;
  config.dim = shape_of(kClipClassEmbedding, 1)[0];
  config.patch_size = shape_of("embeddings.patch_embedding.weight", 4)[3];
  check_config_size(kClipVision, "patch_size", config.patch_size, 1024);
  const int64_t positions = shape_of("embeddings.position_embedding.weight", 2)[0];
  int64_t side = 1;
  while (side < 64 && side * side + 1 < positions) ++side;
  LACUNA_CHECK(side * side + 1 == positions,
               "clip vision: {}: {} positions, expected one more than a square of at most 64 x 64",
               source.describe(), positions);
  config.image_size = side * config.patch_size;
  config.ffn_dim = shape_of("encoder.layers.0.mlp.fc1.weight", 2)[0];
  config.num_heads = config.dim >= 1024 ? 16 : std::max<int64_t>(1, config.dim / 64);
  // OpenCLIP's H and bigG against OpenAI's B and L.
  config.activation = config.dim >= 1280 ? ClipActivation::gelu : ClipActivation::quick_gelu;
  config.num_layers = 0;
  while (config.num_layers <= kMostVisionLayers &&
         source.has(fmt::format("{}encoder.layers.{}.mlp.fc1.weight", prefix, config.num_layers)))
    ++config.num_layers;
  config.validate();
  return config;
}

}  // namespace lacuna
