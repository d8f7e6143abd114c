// SPDX-License-Identifier: Apache-2.0
// How much memory WanDecoder::decode will ask for: the same walk over the layers, counting only.
#include <algorithm>
#include <array>
#include <map>
#include <string_view>

#include "lacuna/core/error.h"
#include "lacuna/models/vae/tiling.h"
#include "lacuna/models/vae/wan_decoder.h"

namespace lacuna {
namespace {

// Stream without memory: largest size per buffer, sum of histories. Sizes in elements.
class Tally {
 public:
  // A clip of one pass keeps no histories.
  explicit Tally(bool one_pass) : one_pass_(one_pass) {}
  int feature(std::initializer_list<int> busy, int64_t elements) {
    int i = 0;
    while (std::find(busy.begin(), busy.end(), i) != busy.end()) ++i;
    grow(features_[static_cast<size_t>(i)], elements);
    return i;
  }
  void scratch(std::string_view name, int64_t elements) { grow(scratch_[name], elements); }
  void history(int64_t elements) { history_ += one_pass_ ? 0 : elements; }
  int64_t elements() const {
    int64_t sum = history_;
    for (const int64_t f : features_) sum += f;
    for (const auto& [name, elements] : scratch_) sum += elements;
    return sum;
  }

 private:
  static void grow(int64_t& size, int64_t elements) { size = std::max(size, elements); }

  bool one_pass_;
  std::array<int64_t, 4> features_{};
  std::map<std::string_view, int64_t> scratch_;
  int64_t history_ = 0;
};

// One map: frames of the steady pass and cells per frame.
struct Map {
  int64_t frames = 1, cells = 0;
  int64_t size(int64_t c) const { return frames * cells * c; }
};

void count_conv(Tally& tally, const Map& map, int64_t c_in) {
  tally.scratch("window", (2 + map.frames) * map.cells * c_in);
  tally.history(2 * map.cells * c_in);
}

int count_res(Tally& tally, const Map& map, const ResBlock& block, int x, int pinned) {
  const int64_t c_in = block.conv1.conv.in_channels(), c = block.conv1.conv.out_channels();
  count_conv(tally, map, c_in);
  const int hidden = tally.feature({x, pinned}, map.size(c));
  count_conv(tally, map, c);
  return block.shortcut ? tally.feature({hidden, pinned}, map.size(c)) : hidden;
}

int count_mid(Tally& tally, const Map& map, const MidBlock& mid, int64_t c) {
  int x = tally.feature({}, map.size(c));
  x = count_res(tally, map, mid.before, x, -1);
  tally.scratch("window", map.size(c));
  tally.scratch("qkv", 3 * map.cells * c);
  const int mixed = tally.feature({x}, map.size(c));
  x = tally.feature({x, mixed}, map.size(c));
  return count_res(tally, map, mid.after, x, -1);
}

// `first`: the video has one latent frame, so time is never doubled.
int count_up(Tally& tally, Map& map, const Upsample& up, int x, int pinned, bool first,
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

  const auto count_trunk = [&](Tally& tally, const Map& map) {
    tally.scratch("latents", map.size(config_.z_dim));
    count_conv(tally, map, config_.z_dim);
    int x = count_mid(tally, map, mid_, dims_[0]);
    const int pinned = residual ? x : -1;
    for (const ResBlock& block : blocks_[0].resnets) x = count_res(tally, map, block, x, pinned);
    return std::pair(x, pinned);
  };
  const auto count_head = [&](Tally& tally, Map map, std::pair<int, int> in,
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
    Tally tally(first);
    Map map{1, latent_height * latent_width};
    map = count_head(tally, map, count_trunk(tally, map), {});
    return tally.elements() * element + map.size(pixel_c) * 4;
  }
  if (tiling.mode == TileMode::exact) {
    int64_t assembly = latent_frames * latent_height * latent_width *
                       (dims_[1] + (residual ? dims_[0] : 0)) * element;
    Tally low(first);
    count_trunk(low, {1, latent_height * latent_width});
    int64_t peak = assembly + low.elements() * element;
    assembly += raw_bytes(latent_height, latent_width);
    for (const ExactTile& tile : plan_exact_tiles(config_, latent_height, latent_width, tiling)) {
      Tally tally(first);
      const Map map{1, area(tile.trunk)};
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
  Tally tally(first);
  const Map map{1, th * tw};
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
