// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/hunyuan/hunyuan_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "lacuna/core/error.h"
#include "lacuna/models/layers.h"

namespace lacuna {
namespace {

constexpr std::array<std::string_view, 2> kHunyuanPresets = {"hunyuanvideo", "hunyuanvideo-tiny"};

void check_hunyuan_range(std::string_view field, int64_t value, int64_t min, int64_t max) {
  LACUNA_CHECK(value >= min && value <= max, "hunyuanvideo config: {} {}, expected {}..{}", field,
               value, min, max);
}

}  // namespace

void HunyuanConfig::validate() const {
  check_hunyuan_range("num_layers", num_layers, 1, 256);
  check_hunyuan_range("num_single_layers", num_single_layers, 0, 256);
  check_hunyuan_range("num_refiner_layers", num_refiner_layers, 0, 64);
  check_hunyuan_range("num_attention_heads", num_heads, 1, 256);
  check_hunyuan_range("attention_head_dim", head_dim, 8, 512);
  check_hunyuan_range("width", dim(), 8, 65536);
  check_hunyuan_range("in_channels", channels, 1, 1024);
  LACUNA_CHECK(mlp_ratio >= 0.125 && mlp_ratio <= 16.0,
               "hunyuanvideo config: mlp_ratio {}, expected 0.125..16", mlp_ratio);
  check_hunyuan_range("patch_size_t", patch_t, 1, 16);
  check_hunyuan_range("patch_size", patch_side, 1, 16);
  check_hunyuan_range("text_embed_dim", text_dim, 1, 65536);
  check_hunyuan_range("text length", text_len, 1, 4096);
  check_hunyuan_range("pooled_projection_dim", pooled_dim, 1, 65536);
  LACUNA_CHECK(rope_theta >= 1.0 && rope_theta <= 1e9,
               "hunyuanvideo config: rope_theta {}, expected 1..1e9", rope_theta);
  int64_t rotated = 0;
  for (const int64_t axis : rope_channels) {
    check_hunyuan_range("rope_axes_dim", axis, 2, 512);
    LACUNA_CHECK(axis % 2 == 0, "hunyuanvideo config: rope_axes_dim {}, expected even numbers",
                 axis);
    rotated += axis;
  }
  LACUNA_CHECK(rotated == head_dim,
               "hunyuanvideo config: rope_axes_dim of {} channels, expected the head's {}", rotated,
               head_dim);
}

VideoGrid HunyuanConfig::grid(int64_t frames, int64_t height, int64_t width) const {
  const auto axis = [](std::string_view name, int64_t size, int64_t patch) {
    LACUNA_CHECK(size > 0 && size % patch == 0,
                 "hunyuanvideo: latent {} {}, expected a positive multiple of the patch size {}",
                 name, size, patch);
    LACUNA_CHECK(size / patch <= kRopePositions,
                 "hunyuanvideo: {} positions along the {}, expected at most {}", size / patch, name,
                 kRopePositions);
    return size / patch;
  };
  const VideoGrid grid{axis("frames", frames, patch_t), axis("height", height, patch_side),
                       axis("width", width, patch_side)};
  LACUNA_CHECK(grid.tokens() <= int64_t{1} << 30, "hunyuanvideo: {} tokens, expected at most 2^30",
               grid.tokens());
  return grid;
}

int64_t HunyuanConfig::num_parameters() const {
  const int64_t d = dim(), f = mlp_dim();
  const auto linear = [](int64_t in, int64_t out) { return in * out + out; };
  const auto embedder = [&](int64_t in) { return linear(in, d) + linear(d, d); };
  const int64_t globals = linear(patch_values(), d) + embedder(kTimestepChannels) +
                          (guidance_embeds ? embedder(kTimestepChannels) : 0) +
                          embedder(pooled_dim) + linear(d, 2 * d) + linear(d, patch_values());
  const int64_t refiner_layer = 4 * linear(d, d) + 4 * d + linear(d, refiner_mlp_dim()) +
                                linear(refiner_mlp_dim(), d) + linear(d, 2 * d);
  const int64_t refiner = embedder(kTimestepChannels) + embedder(text_dim) + linear(text_dim, d) +
                          num_refiner_layers * refiner_layer;
  const int64_t stream =
      linear(d, 6 * d) + 4 * linear(d, d) + 2 * head_dim + linear(d, f) + linear(f, d);
  const int64_t single =
      linear(d, 3 * d) + 3 * linear(d, d) + 2 * head_dim + linear(d, f) + linear(d + f, d);
  return globals + refiner + 2 * num_layers * stream + num_single_layers * single;
}

ForwardFlops HunyuanConfig::flops(int64_t video_tokens, int64_t text_tokens) const {
  const double d = static_cast<double>(dim()), f = static_cast<double>(mlp_dim());
  const double text = static_cast<double>(text_tokens);
  const double rows = static_cast<double>(video_tokens) + text;
  const double dual = static_cast<double>(num_layers);
  const double single = static_cast<double>(num_single_layers);
  const double refiner = static_cast<double>(num_refiner_layers);
  ForwardFlops flops;
  flops.self_attention = 4.0 * rows * rows * d * (dual + single) + 4.0 * text * text * d * refiner;
  flops.gemm =
      2.0 * rows * (dual * (4.0 * d * d + 2.0 * d * f) + single * (4.0 * d * d + 2.0 * d * f)) +
      2.0 * text * refiner * 12.0 * d * d + 2.0 * d * d * (12.0 * dual + 3.0 * single);
  return flops;
}

int64_t HunyuanConfig::activation_bytes(int64_t video_tokens, DType compute) const {
  const int64_t d = dim(), element = storage_bytes(compute, 1);
  const int64_t rows = video_tokens + text_len, part = rows_at_once(rows);
  return rows * d * (4 + 4 * element) + 4 * video_tokens * patch_values() +
         std::max(part * element * std::max(d + mlp_dim(), refiner_mlp_dim()), 4 * part * d) +
         (48 + element) * d;
}

int64_t HunyuanConfig::prompt_bytes() const {
  return 4 * dim() * (text_len + 2);
}

PassingWeights HunyuanConfig::passing_weights(DType compute, double stored, bool lora) const {
  const int64_t d = dim(), f = mlp_dim();
  const int64_t wide = std::max(6 * d * d, d * text_dim);
  const int64_t up = d * std::max(f, refiner_mlp_dim());
  const int64_t down = d * std::max(d + f, refiner_mlp_dim());
  const int64_t largest = std::max({wide, up, down, d * pooled_dim});
  const auto compute_bytes = static_cast<double>(storage_bytes(compute, 1));
  PassingWeights passing;
  passing.stored =
      static_cast<int64_t>(2.0 * stored * static_cast<double>(largest)) +
      storage_bytes(DType::f32, d * std::max({d, text_dim, pooled_dim, kTimestepChannels}));
  // File headers and small f32 tensors make the mean a little more than that of a matrix.
  if (lora || std::abs(stored - compute_bytes) > 0.1 * compute_bytes)
    passing.converted = storage_bytes(compute, wide + up + down);
  return passing;
}

std::span<const std::string_view> hunyuan_preset_names() {
  return kHunyuanPresets;
}

HunyuanConfig hunyuan_preset(std::string_view name) {
  HunyuanConfig config;
  if (name == "hunyuanvideo") {
    config.num_layers = 20;
    config.num_single_layers = 40;
  } else if (name == "hunyuanvideo-tiny") {
    config.num_layers = 2;
    config.num_single_layers = 2;
    config.num_refiner_layers = 1;
    config.num_heads = 4;
    config.head_dim = 64;
    config.text_dim = 128;
    config.pooled_dim = 64;
    config.rope_channels = {16, 24, 24};
  } else {
    fail("hunyuanvideo: preset `{}`, expected one of {}", name, fmt::join(kHunyuanPresets, ", "));
  }
  config.validate();
  return config;
}

}  // namespace lacuna
