// SPDX-License-Identifier: Apache-2.0
// Sliding Tile Attention (arXiv 2502.04507): tokens of a 3-D tile lie together and form one block;
// a query tile sees the key tiles of a 3-D window around it.
//
// Per axis with n tiles and window k, h = floor(k / 2): the window's centre is the query tile,
// clamped to [h, n - 1 - h]; key tiles with |centre - key| <= h are kept. So border tiles see as
// many keys as inner ones, and every tile sees itself. An even k acts as k + 1, as published.
//
// Deviations: the grid need not be a multiple of the tile (border tiles are smaller; the published
// kernel needs whole tiles); an axis with fewer than 2h + 1 tiles is kept whole; text tokens follow
// the tiles in blocks of one tile's size and are always kept. The published search for a
// window per (step, layer, head) is calibration: windows may differ per head here.
#include <algorithm>
#include <array>

#include "lacuna/core/error.h"
#include "lacuna/methods/selection.h"

namespace lacuna {

namespace {

constexpr ParamSpec kWindowSpecs[] = {
    {"tile_frames", 6, 1, 1024, true, "tile length in frames, in tokens"},
    {"tile_height", 8, 1, 1024, true, "tile height in tokens"},
    {"tile_width", 8, 1, 1024, true, "tile width in tokens"},
    {"window_frames", 3, 1, 1024, true, "window length in tiles; even acts as one more"},
    {"window_height", 3, 1, 1024, true, "window height in tiles; even acts as one more"},
    {"window_width", 3, 1, 1024, true, "window width in tiles; even acts as one more"},
};

using Box = std::array<int64_t, 3>;  // frames, height, width

Box read_box(const Params& params, std::string_view prefix, int64_t head) {
  const std::string name(prefix);
  return {params.get_int(name + "_frames", head), params.get_int(name + "_height", head),
          params.get_int(name + "_width", head)};
}

// A grid in tiles of at most its size.
struct Tiling3d {
  Box grid, tile, tiles;

  Tiling3d(const VideoGrid& g, const Params& params)
      : grid{g.frames, g.height, g.width}, tile(read_box(params, "tile", 0)) {
    for (int axis = 0; axis < 3; ++axis) {
      tile[axis] = std::min(tile[axis], grid[axis]);
      tiles[axis] = (grid[axis] + tile[axis] - 1) / tile[axis];
    }
  }
};

struct Range {
  int64_t begin, end;
};

// Key tiles that query tile `tile` of `tiles` sees along one axis.
Range window_range(int64_t tile, int64_t tiles, int64_t window) {
  const int64_t half = window / 2;
  if (2 * half + 1 >= tiles) return {0, tiles};
  const int64_t centre = std::clamp(tile, half, tiles - 1 - half);
  return {centre - half, centre + half + 1};
}

// Block boundaries of tile order, then text in pieces of one full tile. Empty when uniform blocks
// of a full tile say the same.
std::vector<int32_t> tile_offsets(const Tiling3d& cut, int64_t text_tokens) {
  const Box &tile = cut.tile, &tiles = cut.tiles;
  const int64_t volume = tile[0] * tile[1] * tile[2];
  std::vector<int32_t> offsets{0};
  bool uniform = true;
  const auto extent = [&](int axis, int64_t index) {
    return std::min(tile[axis], cut.grid[axis] - index * tile[axis]);
  };
  const auto add = [&](int64_t size) {
    offsets.push_back(offsets.back() + static_cast<int32_t>(size));
    uniform = uniform && size == volume;
  };
  for (int64_t f = 0; f < tiles[0]; ++f)
    for (int64_t h = 0; h < tiles[1]; ++h)
      for (int64_t w = 0; w < tiles[2]; ++w) add(extent(0, f) * extent(1, h) * extent(2, w));
  if (uniform) return {};  // the last text block may be short, as in any uniform layout
  for (int64_t t = 0; t < text_tokens; t += volume) add(std::min(volume, text_tokens - t));
  return offsets;
}

BlockLayout tile_layout(const Tiling3d& cut, int64_t text_tokens, int64_t num_heads) {
  const Box &grid = cut.grid, &tile = cut.tile;
  const int64_t seq_len = grid[0] * grid[1] * grid[2] + text_tokens;
  const std::vector<int32_t> one = tile_offsets(cut, text_tokens);
  if (one.empty())
    return BlockLayout::uniform(seq_len, static_cast<int32_t>(tile[0] * tile[1] * tile[2]));
  std::vector<int32_t> all;
  all.reserve(one.size() * static_cast<size_t>(num_heads));
  for (int64_t i = 0; i < num_heads; ++i) all.insert(all.end(), one.begin(), one.end());
  return BlockLayout::explicit_offsets(seq_len, num_heads, std::move(all));
}

// Blocks and orders; the mask is still to come.
Selection tile_selection(const VideoGrid& grid, const Tiling3d& cut, int64_t text_tokens,
                         int64_t num_heads) {
  Selection selection;
  selection.q_order = tile_order(grid, cut.tile[0], cut.tile[1], cut.tile[2]);
  // Tiles that span whole frames leave raster order as it is: spare the gather.
  if (std::is_sorted(selection.q_order.order.begin(), selection.q_order.order.end()))
    selection.q_order = {};
  append_text(selection.q_order, text_tokens);
  selection.k_order = selection.q_order;
  selection.q_layout = selection.k_layout = tile_layout(cut, text_tokens, num_heads);
  return selection;
}

void keep_window(BlockMask& mask, int64_t row, const Box& tiles, const Box& window) {
  int32_t qb = 0;
  for (int64_t f = 0; f < tiles[0]; ++f)
    for (int64_t h = 0; h < tiles[1]; ++h)
      for (int64_t w = 0; w < tiles[2]; ++w, ++qb) {
        const Range fs = window_range(f, tiles[0], window[0]);
        const Range hs = window_range(h, tiles[1], window[1]);
        const Range ws = window_range(w, tiles[2], window[2]);
        for (int64_t kf = fs.begin; kf < fs.end; ++kf)
          for (int64_t kh = hs.begin; kh < hs.end; ++kh)
            for (int64_t kw = ws.begin; kw < ws.end; ++kw)
              mask.set(row, qb, static_cast<int32_t>((kf * tiles[1] + kh) * tiles[2] + kw));
      }
}

class Window final : public Method {
 public:
  std::string_view name() const override { return "window"; }
  std::string_view summary() const override {
    return "Sliding 3-D window of tiles (Sliding Tile Attention, arXiv 2502.04507)";
  }
  std::span<const ParamSpec> specs() const override { return kWindowSpecs; }
  bool static_mask() const override { return true; }
  bool moves_tokens(const Params& /*params*/) const override { return true; }
  int64_t held_bytes(const HoldArgs& args) const override {
    const SiteSizes& s = args.sizes;
    const Selection made =
        tile_selection(s.grid, Tiling3d(s.grid, args.params), s.text_tokens, s.num_heads);
    return selection_bytes(made) +
           mask_bytes(s.num_heads, made.q_layout.num_blocks, made.k_layout.num_blocks);
  }

  void check(const Params& params) const override {
    for (const char* name : {"tile_frames", "tile_height", "tile_width"})
      LACUNA_CHECK(!params.per_head(name), "window: {} per head, expected one value for all heads",
                   name);
  }

  Selection select(const SelectArgs& args, State* /*state*/) const override {
    check(args.params);
    const Tiling3d cut(args.grid, args.params);
    const auto num_heads = static_cast<int64_t>(args.head_ids.size());
    Selection selection = tile_selection(args.grid, cut, args.text_tokens, num_heads);
    selection.mask =
        BlockMask(num_heads, selection.q_layout.num_blocks, selection.k_layout.num_blocks);
    for (int64_t i = 0; i < num_heads; ++i) {
      const Box window = read_box(args.params, "window", args.head_ids[i]);
      if (i > 0 && window == read_box(args.params, "window", args.head_ids[i - 1])) {
        selection.mask.copy_head(i, selection.mask, i - 1);
      } else {
        keep_window(selection.mask, i, cut.tiles, window);
      }
    }
    keep_text(selection, args.grid.tokens());
    return selection;
  }
};

}  // namespace

const Method& window_method() {
  static const Window method;
  return method;
}

}  // namespace lacuna
