// SPDX-License-Identifier: Apache-2.0
// Geometry of tiled decoding: which part of each map a tile needs, and how tiles are joined.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "lacuna/core/tensor.h"
#include "lacuna/models/vae/pixels.h"
#include "lacuna/models/vae/vae_config.h"
#include "lacuna/models/vae/video_decoder.h"

namespace lacuna {

// One tile of an exact decode. Coordinates of `crops` count from the tile's own map at that level.
struct ExactTile {
  Region trunk;               // part of the latent-resolution map to start from
  std::vector<Region> crops;  // per up block with upsampling: part of the doubled map to keep
  Region inner;               // part of the last map that is the tile itself
  int64_t top = 0, left = 0;  // where `inner` lies in the frame
};

// Cuts a frame of latent size height x width into equal parts of at most tiling.tile_* pixels and
// gives each the least halo that makes it equal to an untiled decode: every 3x3 convolution after
// the first upsampling costs one cell of its own map.
std::vector<ExactTile> plan_exact_tiles(const VaeConfig& config, int64_t height, int64_t width,
                                        const Tiling& tiling);

// Cells along one axis that contribute to cells [begin, end) of the last map, per level: entry 0
// the trunk, entry b + 1 the doubled map of up block b.
struct Span {
  int64_t begin = 0, end = 0;
};
std::vector<Span> required_spans(const VaeConfig& config, int64_t latent_size, Span out);

// Tile placement of a blended decode, in latent cells and in cells of the decoder's output map.
struct BlendPlan {
  int64_t tile_height = 0, tile_width = 0, stride_height = 0, stride_width = 0;  // latent
  int64_t out_stride_height = 0, out_stride_width = 0;
  int64_t blend_height = 0, blend_width = 0;

  // Tiles of a latent frame.
  int64_t rows(int64_t latent_height) const;
  int64_t columns(int64_t latent_width) const;
  // Latent cells of the tiles that are held at one time: two rows of them.
  int64_t held_cells(int64_t latent_height, int64_t latent_width) const;
};
// spatial_factor: pixels per latent cell and side, of which the output map folds `patch` into
// channels. Throws Error unless tiles and strides are multiples of the factor and stride <= tile.
BlendPlan plan_blend(int64_t spatial_factor, int64_t patch, const Tiling& tiling);

// As upstream: a latent frame that fits one tile is not tiled.
bool fits_one_tile(int64_t spatial_factor, const Tiling& tiling, int64_t latent_height,
                   int64_t latent_width);

// For decoders whose norms see whole frames: true where a frame is decoded in one piece, false
// where it is to be blended. Throws Error where it would have to be decoded in tiles exactly;
// `model` names the class in the message.
bool one_piece(const Tiling& tiling, int64_t spatial_factor, int64_t latent_height,
               int64_t latent_width, std::string_view model);

// Throws Error unless each is 1 to 2^20.
void check_latent_sizes(int64_t frames, int64_t height, int64_t width);

// Cross-fades the first rows (columns) of `tile` with the last ones of the tile above (to the
// left): weight of `tile` is i / extent. [t, h, w, c] f32; extent is cut to the smaller tile.
void blend_rows(const TensorView& above, const TensorView& tile, int64_t extent);
void blend_columns(const TensorView& left, const TensorView& tile, int64_t extent);
// The same along time, for the last frames of `before` and the first ones of `tile`, of one size.
void blend_frames(const TensorView& before, const TensorView& tile, int64_t extent);

}  // namespace lacuna
