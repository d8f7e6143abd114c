// SPDX-License-Identifier: Apache-2.0
#include "lacuna/engine/site_selection.h"

#include <algorithm>

#include "lacuna/core/error.h"

namespace lacuna {

namespace {

// Tokens of the largest of `count` blocks; offsets [num_heads, count + 1] or null.
int64_t largest_block(int64_t seq_len, int32_t block, const int32_t* offsets, int64_t num_heads,
                      int64_t count) {
  if (offsets == nullptr) return std::min<int64_t>(block, seq_len);
  int64_t largest = 0;
  for (int64_t i = 1; i < num_heads * (count + 1); ++i)  // from head to head they fall
    largest = std::max<int64_t>(largest, offsets[i] - offsets[i - 1]);
  return largest;
}

}  // namespace

void check_votes(const AttendParams& p) {
  const int64_t rows = largest_block(p.q_len, p.block_q, p.q_offsets, p.num_heads, p.num_q_blocks);
  const int64_t keys = largest_block(p.k_len, p.block_k, p.k_offsets, p.num_heads, p.num_k_blocks);
  LACUNA_CHECK(rows <= kVoteRows && keys <= kVoteKeys,
               "masks: blocks of {} x {} tokens under a skip rule, which drops parts of {} x {}; "
               "recording expects blocks no larger than these, or no skip rule",
               rows, keys, kVoteRows, kVoteKeys);
}

}  // namespace lacuna
