// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/token_order.h"

#include <algorithm>
#include <array>
#include <bit>
#include <utility>

#include "lacuna/core/error.h"

namespace lacuna {

namespace {

// Position on the Hilbert curve through a cube of 2^bits per side (J. Skilling, Programming the
// Hilbert curve, 2004): undo the rotations from the coarsest level down, Gray-encode, interleave.
uint64_t hilbert_index(std::array<uint32_t, 3> x, int bits) {
  for (int level = bits - 1; level > 0; --level) {
    const uint32_t bit = 1u << level, below = bit - 1;
    for (uint32_t& axis : x) {
      if (axis & bit) {
        x[0] ^= below;
      } else {
        const uint32_t swap = (x[0] ^ axis) & below;
        x[0] ^= swap;
        axis ^= swap;
      }
    }
  }
  x[1] ^= x[0];
  x[2] ^= x[1];
  uint32_t flip = 0;
  for (int level = bits - 1; level > 0; --level)
    if (x[2] & (1u << level)) flip ^= (1u << level) - 1;
  uint64_t index = 0;
  for (int level = bits - 1; level >= 0; --level)
    for (const uint32_t axis : x) index = index << 1 | ((axis ^ flip) >> level & 1u);
  return index;
}

}  // namespace

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

TokenOrder hilbert_order(const VideoGrid& grid) {
  const int64_t longest = std::max({grid.frames, grid.height, grid.width, int64_t{1}});
  LACUNA_CHECK(longest <= int64_t{1} << 21, "hilbert_order: grid {}x{}x{}, expected sides to 2^21",
               grid.frames, grid.height, grid.width);
  const int bits = std::bit_width(static_cast<uint64_t>(longest - 1));
  std::vector<std::pair<uint64_t, int32_t>> places;
  places.reserve(static_cast<size_t>(grid.tokens()));
  for (uint32_t f = 0; f < grid.frames; ++f)
    for (uint32_t h = 0; h < grid.height; ++h)
      for (uint32_t w = 0; w < grid.width; ++w)
        places.emplace_back(hilbert_index({f, h, w}, bits), static_cast<int32_t>(places.size()));
  std::sort(places.begin(), places.end());
  TokenOrder result{grid.tokens(), 1, {}};
  result.order.reserve(places.size());
  for (const auto& [index, token] : places) result.order.push_back(token);
  return result;
}

}  // namespace lacuna
