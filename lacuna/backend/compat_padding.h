// SPDX-License-Identifier: Apache-2.0
// How far the published code of XAttention pads keys: what
// Backend::antidiagonal_scores needs to know of it when `compat` is asked for.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "lacuna/core/round.h"

namespace lacuna {

// Groups of padding keys: all of them, and those inside the last block that has real keys.
struct CompatPadding {
  int64_t groups, in_last_block;
};

inline CompatPadding compat_padding(int64_t k_len, int64_t stride, int64_t block) {
  const auto pow2 = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(k_len)));
  // Padded to a whole number of query chunks.
  const int64_t chunk =
      std::max<int64_t>(std::min(std::max<int64_t>(2048, pow2), (int64_t{1} << 28) / pow2), 2048);
  const int64_t real = ceil_div(k_len, stride);
  const int64_t groups = ceil_div(ceil_div(k_len, chunk) * chunk, stride) - real;
  return {groups, std::min(groups, ceil_div(k_len, block) * (block / stride) - real)};
}

}  // namespace lacuna
