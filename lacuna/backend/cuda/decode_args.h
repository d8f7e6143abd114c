// SPDX-License-Identifier: Apache-2.0
// What the host hands to the kernels that decode stored weights: plain data, device pointers.
#pragma once

#include <stdint.h>

namespace lacuna::cuda {

struct DecodeArgs {
  const void* from;  // contiguous blocks of the stored type
  void* to;          // [elements] f32, or bf16 if to_bf16
  int64_t elements;
  bool to_bf16;
  bool vector;  // `to` starts on a multiple of 4 elements
};

inline constexpr int kDecodeThreads = 256;
inline constexpr int kDecodeGroup = 8;  // elements of a thread; whole groups to a block

}  // namespace lacuna::cuda
