// SPDX-License-Identifier: Apache-2.0
// A permutation of tokens. Position p of the new order holds token order[p] of the raster order.
#pragma once

#include <cstdint>
#include <vector>

#include "lacuna/core/video_grid.h"

namespace lacuna {

// One permutation per head, or one for all heads. Empty = raster order.
struct TokenOrder {
  int64_t seq_len = 0;
  int64_t num_heads = 0;       // 1 = the same for every head
  std::vector<int32_t> order;  // [num_heads, seq_len]

  bool empty() const { return order.empty(); }
  const int32_t* head(int64_t h) const { return order.data() + (num_heads == 1 ? 0 : h * seq_len); }
  // Throws Error unless every row is a permutation of 0..seq_len-1.
  void validate() const;
};

// Tokens of each tile_frames x tile_height x tile_width box lie together, boxes in raster order;
// boxes at the far edges are smaller.
TokenOrder tile_order(const VideoGrid& grid, int64_t tile_frames, int64_t tile_height,
                      int64_t tile_width);
// Tokens of one (row, column) site in all frames lie together (SVG temporal heads).
TokenOrder frame_minor_order(const VideoGrid& grid);
// Tokens along a 3-D Hilbert curve: neighbours in the order are near each other in the video. The
// curve is that of the smallest cube of a power of two around the grid, without what lies outside.
TokenOrder hilbert_order(const VideoGrid& grid);

}  // namespace lacuna
