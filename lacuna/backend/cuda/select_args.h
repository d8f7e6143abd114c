// SPDX-License-Identifier: Apache-2.0
// What the host hands to selection kernels: plain data, device pointers. Strides in elements;
// channels are contiguous unless a stride is given.
#pragma once

#include <stdint.h>

namespace lacuna::cuda {

// Where blocks of tokens lie: offsets [heads, num_blocks + 1] by call index, or uniform.
struct BlockArgs {
  const int32_t* offsets;  // or null
  int32_t block, num_blocks, seq_len;
};

// Mean of the tokens of each block. One thread block per (block of tokens, call index).
struct BlockMeanArgs {
  const void* x;  // [heads, seq_len, d]
  int64_t x_head_stride, x_token_stride;
  const int32_t* head_ids;
  BlockArgs blocks;
  int32_t d;
  float* out;  // [calls, num_blocks, d]
  int64_t out_head_stride, out_block_stride, out_channel_stride;
};
inline constexpr int kBlockMeanThreads = 128;

}  // namespace lacuna::cuda
