// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/mochi/mochi_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "lacuna/core/error.h"
#include "lacuna/models/layers.h"

namespace lacuna {
namespace {

constexpr std::array<std::string_view, 2> kMochiPresets = {"mochi-1", "mochi-tiny"};

void check_field(std::string_view field, int64_t value, int64_t min, int64_t max) {
  LACUNA_CHECK(value >= min && value <= max, "mochi config: {} {}, expected {}..{}", field, value,
               min, max);
}

// One stream's share of a layer that goes on to another layer: modulation, q, k and v, output,
// gated feed-forward.
int64_t stream_parameters(int64_t dim, int64_t width, int64_t ffn, int64_t head_dim) {
  return 4 * width * dim + 4 * width + 3 * dim * width + 2 * head_dim + width * dim + width +
         3 * ffn * width;
}

}  // namespace

void MochiConfig::validate() const {
  check_field("num_layers", num_layers, 1, 256);
  check_field("num_attention_heads", num_heads, 1, 256);
  check_field("attention_head_dim", head_dim, 2, 512);
  LACUNA_CHECK(head_dim % 2 == 0, "mochi config: attention_head_dim {}, expected an even number",
               head_dim);
  check_field("dim", dim(), 2, 65536);
  check_field("pooled_projection_dim", text_width, 1, dim());
  check_field("in_channels", in_channels, 1, 1024);
  check_field("out_channels", out_channels, 1, 1024);
  check_field("text_embed_dim", text_dim, 1, 65536);
  LACUNA_CHECK(text_dim % kMochiPoolHeads == 0,
               "mochi config: text_embed_dim {}, expected a multiple of {}", text_dim,
               kMochiPoolHeads);
  check_field("max_sequence_length", text_len, 1, 65536);
  check_field("time_embed_dim", freq_dim, 2, 8192);
  LACUNA_CHECK(freq_dim % 2 == 0, "mochi config: time_embed_dim {}, expected an even number",
               freq_dim);
  check_field("patch_size", patch, 1, 16);
}

VideoGrid MochiConfig::grid(int64_t frames, int64_t height, int64_t width) const {
  const auto axis = [](std::string_view name, int64_t size, int64_t step) {
    LACUNA_CHECK(size > 0 && size % step == 0,
                 "mochi: latent {} {}, expected a positive multiple of the patch size {}", name,
                 size, step);
    LACUNA_CHECK(size / step <= kMaxMochiPositions,
                 "mochi: {} positions along the {}, expected at most {}", size / step, name,
                 kMaxMochiPositions);
    return size / step;
  };
  const VideoGrid grid{axis("frames", frames, 1), axis("height", height, patch),
                       axis("width", width, patch)};
  LACUNA_CHECK(grid.tokens() <= int64_t{1} << 30, "mochi: {} tokens, expected at most 2^30",
               grid.tokens());
  return grid;
}

int64_t MochiConfig::num_parameters() const {
  const int64_t d = dim();
  const auto linear = [](int64_t in, int64_t out) { return in * out + out; };
  const int64_t embedders = linear(patch_inputs(), d) + linear(freq_dim, d) + linear(d, d) +
                            linear(text_dim, 2 * text_dim) + linear(text_dim, text_dim) +
                            linear(text_dim, d) + linear(text_dim, text_width);
  const int64_t head = linear(d, 2 * d) + linear(d, patch_outputs());
  const int64_t text = stream_parameters(d, text_width, text_ffn_dim(), head_dim);
  // The last layer reads the text and leaves it as it is: one row of modulation, no output.
  const int64_t last_text = linear(d, text_width) + 3 * d * text_width + 2 * head_dim;
  return embedders + 3 * num_heads * (head_dim / 2) + head +
         num_layers * stream_parameters(d, d, ffn_dim(), head_dim) + (num_layers - 1) * text +
         last_text;
}

ForwardFlops MochiConfig::flops(int64_t video_tokens, int64_t text_tokens) const {
  const auto n = static_cast<double>(video_tokens), t = static_cast<double>(text_tokens);
  const auto d = static_cast<double>(dim()), w = static_cast<double>(text_width);
  const auto f = static_cast<double>(ffn_dim()), text_f = static_cast<double>(text_ffn_dim());
  const auto layers = static_cast<double>(num_layers);
  ForwardFlops flops;
  flops.self_attention = 4.0 * (n + t) * (n + t) * d * layers;
  flops.gemm = 2.0 * n * layers * (4.0 * d * d + 3.0 * d * f) +
               2.0 * t * (layers * 3.0 * d * w + (layers - 1.0) * (d * w + 3.0 * w * text_f));
  return flops;
}

std::span<const std::string_view> mochi_preset_names() {
  return kMochiPresets;
}

MochiConfig mochi_preset(std::string_view name) {
  MochiConfig config;
  if (name == "mochi-tiny") {
    config.num_layers = 4;
    config.num_heads = 4;
    config.head_dim = 64;
    config.text_width = 128;
    config.text_dim = 128;
  } else if (name != "mochi-1") {
    fail("mochi: preset `{}`, expected one of {}", name, fmt::join(kMochiPresets, ", "));
  }
  config.validate();
  return config;
}

int64_t mochi_activation_bytes(const MochiConfig& config, int64_t video_tokens, DType compute) {
  const int64_t d = config.dim(), element = storage_bytes(compute, 1);
  const int64_t stream = video_tokens + config.text_len;
  const int64_t rows = rows_at_once(video_tokens), text_rows = rows_at_once(config.text_len);
  const int64_t product =
      element * std::max(rows * config.ffn_dim(), text_rows * config.text_ffn_dim());
  const int64_t branch = 4 * std::max(rows * d, text_rows * config.text_width);
  const int64_t positions = std::min(video_tokens + 2, 3 * kMaxMochiPositions);
  return stream * d * (4 + 4 * element) +
         4 * video_tokens * std::max(config.patch_inputs(), config.patch_outputs()) + product +
         std::max(product, branch) + 4 * (5 * d + 4 * config.text_width) + 4 * d * positions;
}

int64_t mochi_prompt_bytes(const MochiConfig& config) {
  return 4 * (config.text_len * config.text_width + config.dim());
}

PassingWeights mochi_passing_weights(const MochiConfig& config, DType compute, double stored,
                                     bool lora) {
  const int64_t d = config.dim(), f = config.ffn_dim(), t = config.text_dim;
  const int64_t in_f32 = std::max({4 * d * d, 2 * t * t, t * d});
  const int64_t largest = std::max(2 * f * d, in_f32);
  const auto compute_bytes = static_cast<double>(storage_bytes(compute, 1));
  PassingWeights passing;
  passing.stored = static_cast<int64_t>(2.0 * stored * static_cast<double>(largest)) +
                   storage_bytes(DType::f32, in_f32);
  // File headers and small f32 tensors make the mean a little more than that of a matrix. What
  // attention converts takes the place of a modulation's f32.
  if (lora || std::abs(stored - compute_bytes) > 0.1 * compute_bytes)
    passing.converted = storage_bytes(compute, 3 * f * d);
  return passing;
}

}  // namespace lacuna
