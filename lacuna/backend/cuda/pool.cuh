// SPDX-License-Identifier: Apache-2.0
// Pooling: the mean of every block of tokens.
#pragma once

#include "lacuna/backend/cuda/blocks.cuh"
#include "lacuna/backend/cuda/product.cuh"

namespace lacuna::cuda {

// Each thread owns channels, so that a row of tokens is read in one go and no sum is shared.
// Partial sums over 64 tokens keep the error of long blocks at a few ulp.
template <class T>
LACUNA_DEVICE void block_mean(const BlockMeanArgs& p) {
  constexpr int kPart = 64;
  const int block = block_id(), call = block_id_y();
  const int begin = block_begin(p.blocks, call, block);
  const int end = block_begin(p.blocks, call, block + 1);
  const int64_t head = read_global(p.head_ids + call) * p.x_head_stride;
  const float n = static_cast<float>(end > begin ? end - begin : 1);
  LACUNA_NO_UNROLL
  for (int c = thread_id(); c < p.d; c += kBlockMeanThreads) {
    float total = 0.0f;
    LACUNA_NO_UNROLL
    for (int first = begin; first < end; first += kPart) {
      const int last = min_of(first + kPart, end);
      float part = 0.0f;
      for (int t = first; t < last; ++t)
        part += load_element<T>(p.x, head + t * p.x_token_stride + c);
      total += part;
    }
    write_global(
        p.out + call * p.out_head_stride + block * p.out_block_stride + c * p.out_channel_stride,
        total / n);
  }
}

}  // namespace lacuna::cuda
