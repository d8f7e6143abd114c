// SPDX-License-Identifier: Apache-2.0
// Geometry of tiled decoding: which part of each map a tile needs, and how tiles are joined.
#pragma once

#include <cstdint>
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
};
// Throws Error unless tiles and strides are multiples of the spatial factor and stride <= tile.
BlendPlan plan_blend(const VaeConfig& config, const Tiling& tiling);

// Cross-fades the first rows (columns) of `tile` with the last ones of the tile above (to the
// left): weight of `tile` is i / extent. [t, h, w, c] f32; extent is cut to the smaller tile.
void blend_rows(const TensorView& above, const TensorView& tile, int64_t extent);
void blend_columns(const TensorView& left, const TensorView& tile, int64_t extent);

}  // namespace lacuna
