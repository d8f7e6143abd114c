// SPDX-License-Identifier: Apache-2.0
// How much memory WanDecoder::decode will ask for: the same walk over the layers, counting only.
#include <algorithm>

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
  check_latent_sizes(latent_frames, latent_height, latent_width);
  const bool first = latent_frames == 1, residual = config_.is_residual;
  const int64_t element = storage_bytes(compute, 1), pixel_c = config_.pixel_channels();
  const int64_t scale = int64_t{1} << (config_.num_levels() - 1);
  const auto raw_bytes = [&](int64_t latent_cells) {
    return frames_out(latent_frames) * latent_cells * scale * scale * pixel_c * 4;
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

  if (tiling.mode == TileMode::off ||
      fits_one_tile(spatial_factor(), tiling, latent_height, latent_width)) {
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
    assembly += raw_bytes(latent_height * latent_width);
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
  const BlendPlan plan = plan_blend(spatial_factor(), config_.patch_size, tiling);
  MemoryTally tally(first);
  const TallyMap map{
      1, std::min(plan.tile_height, latent_height) * std::min(plan.tile_width, latent_width)};
  count_head(tally, map, count_trunk(tally, map), {});
  const int64_t cells = latent_height * latent_width + plan.held_cells(latent_height, latent_width);
  return tally.elements() * element + raw_bytes(cells);
}

}  // namespace lacuna
