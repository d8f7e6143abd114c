// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/vae/tiling.h"

#include <algorithm>

#include "lacuna/core/error.h"
#include "lacuna/core/round.h"
#include "lacuna/core/threads.h"

namespace lacuna {
namespace {

// Equal parts of at most `most` cells, in whole latent cells so that every level divides.
std::vector<Span> equal_parts(int64_t latent_size, int64_t most_latent) {
  const int64_t parts = ceil_div(latent_size, std::max<int64_t>(most_latent, 1));
  std::vector<Span> spans;
  for (int64_t i = 0; i < parts; ++i) {
    spans.push_back({latent_size * i / parts, latent_size * (i + 1) / parts});
  }
  return spans;
}

// Joins one axis of a tile: fills the row or column fields of an ExactTile.
struct AxisPlan {
  std::vector<Span> needed;  // absolute, per level
  Span out;                  // absolute, last map

  Span crop(size_t b) const {
    return {needed[b + 1].begin - 2 * needed[b].begin, needed[b + 1].end - 2 * needed[b].begin};
  }
  Span inner() const { return {out.begin - needed.back().begin, out.end - needed.back().begin}; }
};

std::vector<AxisPlan> plan_axis(const VaeConfig& config, int64_t latent_size, int64_t tile_pixels) {
  const int64_t scale = int64_t{1} << (config.num_levels() - 1);
  std::vector<AxisPlan> plans;
  for (const Span part : equal_parts(latent_size, tile_pixels / config.spatial_factor())) {
    const Span out = {part.begin * scale, part.end * scale};
    plans.push_back({required_spans(config, latent_size, out), out});
  }
  return plans;
}

Region make_region(Span rows, Span columns) {
  return {rows.begin, columns.begin, rows.end - rows.begin, columns.end - columns.begin};
}

}  // namespace

std::vector<Span> required_spans(const VaeConfig& config, int64_t latent_size, Span out) {
  const int64_t levels = config.num_levels(), res_convs = 2 * (config.num_res_blocks + 1);
  std::vector<Span> spans(static_cast<size_t>(levels));
  Span need = out;
  for (int64_t level = levels - 1; level >= 1; --level) {
    // The map at this level feeds its block's residual convolutions, and conv_out after the last.
    const int64_t radius = res_convs + (level == levels - 1 ? 1 : 0);
    need.begin = std::max<int64_t>(need.begin - radius, 0);
    need.end = std::min(need.end + radius, latent_size << level);
    spans[static_cast<size_t>(level)] = need;
    // The up-convolution reads one doubled cell to each side.
    need = {std::max<int64_t>(need.begin - 1, 0) / 2,
            std::min(need.end / 2 + 1, latent_size << (level - 1))};
  }
  spans[0] = need;
  return spans;
}

std::vector<ExactTile> plan_exact_tiles(const VaeConfig& config, int64_t height, int64_t width,
                                        const Tiling& tiling) {
  LACUNA_CHECK(
      tiling.tile_height >= config.spatial_factor() && tiling.tile_width >= config.spatial_factor(),
      "vae tiling: tile {} x {}, expected at least {} pixels", tiling.tile_height,
      tiling.tile_width, config.spatial_factor());
  std::vector<ExactTile> tiles;
  const std::vector<AxisPlan> columns = plan_axis(config, width, tiling.tile_width);
  for (const AxisPlan& row : plan_axis(config, height, tiling.tile_height)) {
    for (const AxisPlan& column : columns) {
      ExactTile tile;
      tile.trunk = make_region(row.needed[0], column.needed[0]);
      for (size_t b = 0; b + 1 < row.needed.size(); ++b) {
        tile.crops.push_back(make_region(row.crop(b), column.crop(b)));
      }
      tile.inner = make_region(row.inner(), column.inner());
      tile.top = row.out.begin;
      tile.left = column.out.begin;
      tiles.push_back(std::move(tile));
    }
  }
  return tiles;
}

BlendPlan plan_blend(int64_t spatial_factor, int64_t patch, const Tiling& tiling) {
  const auto check = [&](int64_t tile, int64_t stride) {
    LACUNA_CHECK(stride >= spatial_factor && tile >= stride && tile % spatial_factor == 0 &&
                     stride % spatial_factor == 0,
                 "vae tiling: tile {} stride {}, expected multiples of {} with stride <= tile",
                 tile, stride, spatial_factor);
  };
  check(tiling.tile_height, tiling.stride_height);
  check(tiling.tile_width, tiling.stride_width);
  BlendPlan plan;
  plan.tile_height = tiling.tile_height / spatial_factor;
  plan.tile_width = tiling.tile_width / spatial_factor;
  plan.stride_height = tiling.stride_height / spatial_factor;
  plan.stride_width = tiling.stride_width / spatial_factor;
  plan.out_stride_height = tiling.stride_height / patch;
  plan.out_stride_width = tiling.stride_width / patch;
  plan.blend_height = tiling.tile_height / patch - plan.out_stride_height;
  plan.blend_width = tiling.tile_width / patch - plan.out_stride_width;
  return plan;
}

int64_t BlendPlan::rows(int64_t latent_height) const {
  return ceil_div(latent_height, stride_height);
}

int64_t BlendPlan::columns(int64_t latent_width) const {
  return ceil_div(latent_width, stride_width);
}

int64_t BlendPlan::held_cells(int64_t latent_height, int64_t latent_width) const {
  // Tiles are cut at the frame's edge.
  int64_t row_width = 0, rows_height = 0, above = 0;
  for (int64_t x = 0; x < latent_width; x += stride_width) {
    row_width += std::min(tile_width, latent_width - x);
  }
  for (int64_t y = 0; y < latent_height; y += stride_height) {
    const int64_t height = std::min(tile_height, latent_height - y);
    rows_height = std::max(rows_height, above + height);
    above = height;
  }
  return rows_height * row_width;
}

bool fits_one_tile(int64_t spatial_factor, const Tiling& tiling, int64_t latent_height,
                   int64_t latent_width) {
  return latent_height <= tiling.tile_height / spatial_factor &&
         latent_width <= tiling.tile_width / spatial_factor;
}

bool one_piece(const Tiling& tiling, int64_t spatial_factor, int64_t latent_height,
               int64_t latent_width, std::string_view model) {
  if (tiling.mode == TileMode::off ||
      fits_one_tile(spatial_factor, tiling, latent_height, latent_width)) {
    return true;
  }
  LACUNA_CHECK(tiling.mode == TileMode::blend,
               "vae tiling: exact for {}, expected off or blend: its norms see whole frames",
               model);
  return false;
}

void check_latent_sizes(int64_t frames, int64_t height, int64_t width) {
  const auto in_range = [](int64_t v) { return v >= 1 && v <= (1 << 20); };
  LACUNA_CHECK(in_range(frames) && in_range(height) && in_range(width),
               "vae memory: latents {} x {} x {}, expected 1 to 2^20 each", frames, height, width);
}

void blend_rows(const TensorView& above, const TensorView& tile, int64_t extent) {
  const int64_t h = tile.shape[1], row = tile.shape[2] * tile.shape[3], above_h = above.shape[1];
  extent = std::min({above_h, h, extent});
  const float* from = above.as<float>();
  float* to = tile.as<float>();
  parallel_ranges(tile.shape[0] * extent, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t f = i / extent, y = i % extent;
      const float weight = static_cast<float>(y) / static_cast<float>(extent);
      const float* a = from + (f * above_h + above_h - extent + y) * row;
      float* b = to + (f * h + y) * row;
      for (int64_t k = 0; k < row; ++k) b[k] = a[k] * (1.0f - weight) + b[k] * weight;
    }
  });
}

void blend_columns(const TensorView& left, const TensorView& tile, int64_t extent) {
  const int64_t w = tile.shape[2], c = tile.shape[3], left_w = left.shape[2];
  extent = std::min({left_w, w, extent});
  const float* from = left.as<float>();
  float* to = tile.as<float>();
  parallel_ranges(tile.shape[0] * tile.shape[1], 64, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t x = 0; x < extent; ++x) {
        const float weight = static_cast<float>(x) / static_cast<float>(extent);
        const float* a = from + (row * left_w + left_w - extent + x) * c;
        float* b = to + (row * w + x) * c;
        for (int64_t k = 0; k < c; ++k) b[k] = a[k] * (1.0f - weight) + b[k] * weight;
      }
    }
  });
}

void blend_frames(const TensorView& before, const TensorView& tile, int64_t extent) {
  const int64_t frame = tile.shape[1] * tile.shape[2] * tile.shape[3];
  extent = std::min({before.shape[0], tile.shape[0], extent});
  const float* from = before.as<float>() + (before.shape[0] - extent) * frame;
  float* to = tile.as<float>();
  for (int64_t f = 0; f < extent; ++f) {
    const float weight = static_cast<float>(f) / static_cast<float>(extent);
    const float* a = from + f * frame;
    float* b = to + f * frame;
    parallel_ranges(frame, 1 << 14, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) b[k] = a[k] * (1.0f - weight) + b[k] * weight;
    });
  }
}

}  // namespace lacuna
