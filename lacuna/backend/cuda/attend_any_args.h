// SPDX-License-Identifier: Apache-2.0
// What the host hands to the generic attention kernel: the call as the tensor-core kernels get it,
// and what those have in their names.
#pragma once

#include "lacuna/backend/cuda/launch.h"

namespace lacuna::cuda {

struct AttendAnyArgs {
  AttendArgs call;  // no skip rule; scale_log2 of any sign
  int32_t head_dim;
};

inline constexpr int kAnyThreads = 256;
inline constexpr int kAnyRows = 32;  // query rows of a thread block, 4 to a warp
inline constexpr int kAnyBlocksPerJob = 2 * kHalfRows / kAnyRows;
inline constexpr int kAnyChunk = 64;                 // channels of K in shared memory
inline constexpr int kAnyKeyStride = kAnyChunk + 4;  // floats: keys fall into all banks
inline constexpr int kAnyMostHeadDim = 512;
// Queries, a chunk of a slot's keys, probabilities.
inline constexpr int any_shared_bytes(int dim) {
  return 4 * (kAnyRows * dim + kSlotKeys * kAnyKeyStride + kAnyRows * kSlotKeys);
}
static_assert(any_shared_bytes(kAnyMostHeadDim) <= kMostSharedBytes);

}  // namespace lacuna::cuda
