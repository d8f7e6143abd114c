// SPDX-License-Identifier: Apache-2.0
// Where blocks of tokens lie.
#pragma once

#include "lacuna/backend/cuda/element.cuh"
#include "lacuna/backend/cuda/select_args.h"

namespace lacuna::cuda {

LACUNA_DEVICE int block_begin(const BlockArgs& b, int call, int block) {
  if (b.offsets != nullptr)
    return read_global(b.offsets + call * (static_cast<int64_t>(b.num_blocks) + 1) + block);
  const int64_t token = static_cast<int64_t>(block) * b.block;
  return token < b.seq_len ? static_cast<int>(token) : b.seq_len;
}

// The block that `token` lies in, which is not empty.
LACUNA_DEVICE int block_of(const BlockArgs& b, int call, int token) {
  if (b.offsets == nullptr) return token / b.block;
  int low = 0, high = b.num_blocks - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (block_begin(b, call, middle) <= token) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

}  // namespace lacuna::cuda
