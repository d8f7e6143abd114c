// SPDX-License-Identifier: Apache-2.0
// How much memory WanDecoder::decode will ask for: the same walk over the layers, counting only.
#include <algorithm>

#include "lacuna/core/error.h"
#include "lacuna/models/vae/memory_tally.h"
#include "lacuna/models/vae/tiling.h"
#include "lacuna/models/vae/wan_decoder.h"

namespace lacuna {
namespace {

// `first`: the video has one latent frame, so time is never doubled.
int count_up(MemoryTally& tally, TallyMap& map, const Upsample& up, int x, int pinned, bool first,
             int64_t kept_cells) {
  if (up.time && !first) {
    const int64_t c = up.time->conv.in_channels();
    count_conv(tally, map, c);
    map.frames *= 2;
    x = tally.feature({x, pinned}, map.size(c));
  }
  const int64_t c = up.bias.numel();
  tally.scratch("phase", map.size(c));
  map.cells = kept_cells;
  return tally.feature({x, pinned}, map.size(c));
}

int64_t area(const Region& region) {
  return region.height * region.width;
}

}  // namespace

int64_t WanDecoder::memory_bytes(int64_t latent_frames, int64_t latent_height, int64_t latent_width,
                                 DType compute, const Tiling& tiling) const {
  const auto in_range = [](int64_t v) { return v >= 1 && v <= (1 << 20); };
  LACUNA_CHECK(in_range(latent_frames) && in_range(latent_height) && in_range(latent_width),
               "vae memory: latents {} x {} x {}, expected 1 to 2^20 each", latent_frames,
               latent_height, latent_width);
  const bool first = latent_frames == 1, residual = config_.is_residual;
  const int64_t element = storage_bytes(compute, 1), pixel_c = config_.pixel_channels();
  const int64_t scale = int64_t{1} << (config_.num_levels() - 1);
  const auto raw_bytes = [&](int64_t h, int64_t w) {
    return frames_out(latent_frames) * h * w * scale * scale * pixel_c * 4;
  };

  const auto count_trunk = [&](MemoryTally& tally, const TallyMap& map) {
    tally.scratch("latents", map.size(config_.z_dim));
    count_conv(tally, map, config_.z_dim);
    int x = count_mid(tally, map, mid_, tally.feature({}, map.size(dims_[0])));
    const int pinned = residual ? x : -1;
    for (const ResBlock& block : blocks_[0].resnets) x = count_res(tally, map, block, x, pinned);
    return std::pair(x, pinned);
  };
  const auto count_head = [&](MemoryTally& tally, TallyMap map, std::pair<int, int> in,
                              const std::vector<Region>& crops) {
    auto [x, pinned] = in;
    for (size_t b = 0; b < blocks_.size(); ++b) {
      if (b > 0) {
        pinned = residual && blocks_[b].up ? x : -1;
        for (const ResBlock& block : blocks_[b].resnets)
          x = count_res(tally, map, block, x, pinned);
      }
      if (!blocks_[b].up) continue;
      const int64_t kept = crops.empty() ? 4 * map.cells : area(crops[b]);
      x = count_up(tally, map, *blocks_[b].up, x, pinned, first, kept);
    }
    count_conv(tally, map, conv_out_.conv.in_channels());
    tally.scratch("raw", map.size(pixel_c));
    return map;
  };

  const bool fits = latent_height <= tiling.tile_height / spatial_factor() &&
                    latent_width <= tiling.tile_width / spatial_factor();
  if (tiling.mode == TileMode::off || fits) {
    MemoryTally tally(first);
    TallyMap map{1, latent_height * latent_width};
    map = count_head(tally, map, count_trunk(tally, map), {});
    return tally.elements() * element + map.size(pixel_c) * 4;
  }
  if (tiling.mode == TileMode::exact) {
    int64_t assembly = latent_frames * latent_height * latent_width *
                       (dims_[1] + (residual ? dims_[0] : 0)) * element;
    MemoryTally low(first);
    count_trunk(low, {1, latent_height * latent_width});
    int64_t peak = assembly + low.elements() * element;
    assembly += raw_bytes(latent_height, latent_width);
    for (const ExactTile& tile : plan_exact_tiles(config_, latent_height, latent_width, tiling)) {
      MemoryTally tally(first);
      const TallyMap map{1, area(tile.trunk)};
      const int x = tally.feature({}, map.size(dims_[1]));
      const int pinned = residual ? tally.feature({x}, map.size(dims_[0])) : -1;
      count_head(tally, map, {x, pinned}, tile.crops);
      peak = std::max(peak, assembly + tally.elements() * element);
    }
    return peak;
  }
  const BlendPlan plan = plan_blend(config_, tiling);
  const int64_t th = std::min(plan.tile_height, latent_height);
  const int64_t tw = std::min(plan.tile_width, latent_width);
  MemoryTally tally(first);
  const TallyMap map{1, th * tw};
  count_head(tally, map, count_trunk(tally, map), {});
  // Besides the clip: the tiles of two rows, cut at the frame's edge.
  int64_t row_width = 0, rows_height = 0;
  for (int64_t x = 0; x < latent_width; x += plan.stride_width) {
    row_width += std::min(tw, latent_width - x);
  }
  int64_t above = 0;
  for (int64_t y = 0; y < latent_height; y += plan.stride_height) {
    const int64_t height = std::min(th, latent_height - y);
    rows_height = std::max(rows_height, above + height);
    above = height;
  }
  return tally.elements() * element + raw_bytes(latent_height, latent_width) +
         raw_bytes(rows_height, row_width);
}

}  // namespace lacuna
