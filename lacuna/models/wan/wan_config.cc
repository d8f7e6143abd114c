// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/wan/wan_config.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>

#include "lacuna/core/error.h"
#include "lacuna/models/layers.h"

namespace lacuna {
namespace {

struct Preset {
  std::string_view name;
  int64_t layers, heads, head_dim, ffn, channels, text_dim;
  bool takes_pictures = false;
  int64_t image_dim = 0, image_positions = 0;
};
constexpr Preset kPresets[] = {
    {"wan2.1-1.3b", 30, 12, 128, 8960, 16, 4096},
    {"wan2.1-14b", 40, 40, 128, 13824, 16, 4096},
    {"wan2.2-a14b", 40, 40, 128, 13824, 16, 4096},
    {"wan2.2-ti2v-5b", 30, 24, 128, 14336, 48, 4096},
    {"wan2.1-i2v-14b", 40, 40, 128, 13824, 16, 4096, true, 1280},
    {"wan2.1-flf2v-14b", 40, 40, 128, 13824, 16, 4096, true, 1280, 2 * kUsualImageRows},
    {"wan2.2-i2v-a14b", 40, 40, 128, 13824, 16, 4096, true},
    {"tiny", 4, 4, 64, 1024, 16, 128},
    {"tiny-i2v", 4, 4, 64, 1024, 16, 128, true, 64},
};

constexpr auto kPresetNames = [] {
  std::array<std::string_view, std::size(kPresets)> names{};
  for (size_t i = 0; i < names.size(); ++i) names[i] = kPresets[i].name;
  return names;
}();

void check_range(std::string_view field, int64_t value, int64_t min, int64_t max) {
  LACUNA_CHECK(value >= min && value <= max, "wan config: {} {}, expected {}..{}", field, value,
               min, max);
}

int64_t image_rows(const WanConfig& config) {
  if (config.image_dim == 0) return 0;
  return config.image_positions > 0 ? config.image_positions : kUsualImageRows;
}

}  // namespace

void WanConfig::validate() const {
  check_range("num_layers", num_layers, 1, 256);
  check_range("num_attention_heads", num_heads, 1, 256);
  check_range("attention_head_dim", head_dim, 8, 512);
  LACUNA_CHECK(head_dim % 2 == 0, "wan config: attention_head_dim {}, expected an even number",
               head_dim);
  check_range("dim", dim(), 8, 65536);
  check_range("in_channels", in_channels, 1, 1024);
  check_range("out_channels", out_channels, 1, 1024);
  check_range("ffn_dim", ffn_dim, 1, 1 << 18);
  check_range("text_dim", text_dim, 1, 65536);
  check_range("text_len", text_len, 1, 65536);
  check_range("freq_dim", freq_dim, 2, 8192);
  LACUNA_CHECK(freq_dim % 2 == 0, "wan config: freq_dim {}, expected an even number", freq_dim);
  check_range("patch_size[0]", patch_t, 1, 16);
  check_range("patch_size[1]", patch_h, 1, 16);
  check_range("patch_size[2]", patch_w, 1, 16);
  check_range("rope_max_seq_len", rope_max_positions, 1, 1024 * 16);
  LACUNA_CHECK(rope_theta >= 1.0 && rope_theta <= 1e9, "wan config: rope theta {}, expected 1..1e9",
               rope_theta);
  LACUNA_CHECK(eps > 0.0f && eps <= 0.1f, "wan config: eps {}, expected above 0, at most 0.1", eps);
  check_range("image_dim", image_dim, 0, 65536);
  check_range("pos_embed_seq_len", image_positions, 0, 65536);
  const bool conditioned = in_channels == 2 * out_channels + kMaskChannels;
  LACUNA_CHECK(
      in_channels == out_channels || conditioned,
      "wan config: {} channels in and {} out, expected as many, or {} in (image-to-video); "
      "Fun-Control and other networks with more are not supported",
      in_channels, out_channels, 2 * out_channels + kMaskChannels);
  LACUNA_CHECK(image_dim == 0 || conditioned,
               "wan config: image_dim {} and {} channels in, expected {} with image keys",
               image_dim, in_channels, 2 * out_channels + kMaskChannels);
  LACUNA_CHECK(image_positions == 0 || (image_dim > 0 && image_positions % 2 == 0),
               "wan config: pos_embed_seq_len {} with image_dim {}, expected the rows of two "
               "pictures",
               image_positions, image_dim);
  // Without it upstream feeds the raw residual into cross-attention; no released model does.
  LACUNA_CHECK(cross_attn_norm, "wan config: cross_attn_norm false, expected true");
}

VideoGrid WanConfig::grid(int64_t frames, int64_t height, int64_t width) const {
  const auto axis = [&](std::string_view name, int64_t size, int64_t patch) {
    LACUNA_CHECK(size > 0 && size % patch == 0,
                 "wan: latent {} {}, expected a positive multiple of the patch size {}", name, size,
                 patch);
    const int64_t positions = size / patch;
    LACUNA_CHECK(positions <= rope_max_positions,
                 "wan: {} positions along the {}, expected at most {} (rope_max_seq_len)",
                 positions, name, rope_max_positions);
    return positions;
  };
  VideoGrid grid;
  grid.frames = axis("frames", frames, patch_t);
  grid.height = axis("height", height, patch_h);
  grid.width = axis("width", width, patch_w);
  LACUNA_CHECK(grid.tokens() <= int64_t{1} << 30, "wan: {} tokens, expected at most 2^30",
               grid.tokens());
  return grid;
}

int64_t WanConfig::num_parameters() const {
  const int64_t d = dim();
  const auto linear = [](int64_t in, int64_t out) { return in * out + out; };
  const int64_t globals = linear(patch_inputs(), d) + linear(freq_dim, d) + linear(d, d) +
                          linear(d, 6 * d) + linear(text_dim, d) + linear(d, d) + 2 * d +
                          linear(d, patch_outputs());
  // 8 square matrices, 4 q/k norms, norm2 weight and bias, 6 modulation rows.
  const int64_t block =
      8 * linear(d, d) + 4 * d + 2 * d + 6 * d + linear(d, ffn_dim) + linear(ffn_dim, d);
  // Two norms and two matrices, the positions; per block two projections and a norm.
  const int64_t image =
      image_dim == 0 ? 0
                     : 2 * image_dim + linear(image_dim, image_dim) + linear(image_dim, d) + 2 * d +
                           image_positions * image_dim + num_layers * (2 * linear(d, d) + d);
  return globals + image + num_layers * block;
}

int64_t WanConfig::num_tensors() const {
  const int64_t image = image_dim == 0 ? 0 : 8 + (image_positions > 0 ? 1 : 0) + 5 * num_layers;
  return 15 + image + 27 * num_layers;
}

ForwardFlops WanConfig::flops(int64_t tokens, int64_t text_tokens) const {
  const double n = static_cast<double>(tokens);
  const double d = static_cast<double>(dim());
  const double f = static_cast<double>(ffn_dim);
  const double layers = static_cast<double>(num_layers);
  // Keys of pictures cost what those of text do.
  const double text = static_cast<double>(text_tokens + image_rows(*this));
  ForwardFlops flops;
  flops.self_attention = 4.0 * n * n * d * layers;
  flops.cross_attention = 4.0 * n * text * d * layers;
  flops.gemm = 2.0 * n * layers * (6.0 * d * d + 2.0 * d * f) + 2.0 * text * layers * 2.0 * d * d;
  return flops;
}

std::span<const std::string_view> wan_preset_names() {
  return kPresetNames;
}

WanConfig wan_preset(std::string_view name) {
  const auto* preset =
      std::find_if(std::begin(kPresets), std::end(kPresets),
                   [&](const Preset& candidate) { return candidate.name == name; });
  LACUNA_CHECK(preset != std::end(kPresets), "wan: preset `{}`, expected one of {}", name,
               fmt::join(kPresetNames, ", "));
  WanConfig config;
  config.num_layers = preset->layers;
  config.num_heads = preset->heads;
  config.head_dim = preset->head_dim;
  config.ffn_dim = preset->ffn;
  config.text_dim = preset->text_dim;
  config.in_channels = config.out_channels = preset->channels;
  if (preset->takes_pictures) config.in_channels = 2 * preset->channels + kMaskChannels;
  config.image_dim = preset->image_dim;
  config.image_positions = preset->image_positions;
  config.validate();
  return config;
}

int64_t activation_bytes(const WanConfig& config, int64_t tokens, DType compute) {
  const int64_t d = config.dim();
  const int64_t element = storage_bytes(compute, 1);
  const int64_t rows = rows_at_once(tokens);
  return tokens * d * (4 + 4 * element) +
         4 * tokens * std::max(config.patch_inputs(), config.patch_outputs()) +
         std::max(rows * config.ffn_dim * element, 4 * rows * d) + 4 * kMaxTokenTimes * 6 * d;
}

int64_t text_bytes(const WanConfig& config, DType compute) {
  const int64_t keys = config.text_len + image_rows(config);
  return storage_bytes(compute, 2 * config.num_layers * keys * config.dim());
}

PassingWeights passing_weights(const WanConfig& config, DType compute, double stored, bool lora) {
  const int64_t d = config.dim(), f = config.ffn_dim, modulation = 6 * d * d;
  const int64_t largest = std::max({d * f, modulation, d * config.text_dim});
  const auto compute_bytes = static_cast<double>(storage_bytes(compute, 1));
  PassingWeights passing;
  passing.stored = static_cast<int64_t>(2.0 * stored * static_cast<double>(largest)) +
                   storage_bytes(DType::f32, modulation);
  // File headers and small f32 tensors make the mean a little more than that of a matrix.
  if (lora || std::abs(stored - compute_bytes) > 0.1 * compute_bytes)
    passing.converted = storage_bytes(compute, 2 * d * f + d * std::max(d, config.text_dim));
  return passing;
}

}  // namespace lacuna
