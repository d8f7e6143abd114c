// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/token_order.h"

#include <algorithm>

#include "lacuna/core/error.h"

namespace lacuna {

void TokenOrder::validate() const {
  LACUNA_CHECK(static_cast<int64_t>(order.size()) == num_heads * seq_len,
               "token order: {} entries, expected {} x {}", order.size(), num_heads, seq_len);
  std::vector<char> seen(static_cast<size_t>(seq_len));
  for (int64_t h = 0; h < num_heads; ++h) {
    std::fill(seen.begin(), seen.end(), 0);
    for (int64_t p = 0; p < seq_len; ++p) {
      const int64_t token = order[h * seq_len + p];
      LACUNA_CHECK(token >= 0 && token < seq_len && !seen[token],
                   "token order: head {} position {} holds {}, expected a permutation of 0..{}", h,
                   p, token, seq_len - 1);
      seen[token] = 1;
    }
  }
}

TokenOrder tile_order(const VideoGrid& grid, int64_t tile_frames, int64_t tile_height,
                      int64_t tile_width) {
  LACUNA_CHECK(tile_frames > 0 && tile_height > 0 && tile_width > 0,
               "tile_order: tile {}x{}x{}, expected positive sizes", tile_frames, tile_height,
               tile_width);
  TokenOrder result{grid.tokens(), 1, {}};
  result.order.reserve(static_cast<size_t>(grid.tokens()));
  for (int64_t tf = 0; tf < grid.frames; tf += tile_frames)
    for (int64_t th = 0; th < grid.height; th += tile_height)
      for (int64_t tw = 0; tw < grid.width; tw += tile_width)
        for (int64_t f = tf; f < std::min(tf + tile_frames, grid.frames); ++f)
          for (int64_t h = th; h < std::min(th + tile_height, grid.height); ++h)
            for (int64_t w = tw; w < std::min(tw + tile_width, grid.width); ++w)
              result.order.push_back(static_cast<int32_t>((f * grid.height + h) * grid.width + w));
  return result;
}

TokenOrder frame_minor_order(const VideoGrid& grid) {
  TokenOrder result{grid.tokens(), 1, {}};
  result.order.reserve(static_cast<size_t>(grid.tokens()));
  for (int64_t site = 0; site < grid.tokens_per_frame(); ++site)
    for (int64_t f = 0; f < grid.frames; ++f)
      result.order.push_back(static_cast<int32_t>(f * grid.tokens_per_frame() + site));
  return result;
}

}  // namespace lacuna
