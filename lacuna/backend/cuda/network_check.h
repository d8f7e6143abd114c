// SPDX-License-Identifier: Apache-2.0
// What network ops ask of their tensors, wherever they lie.
#pragma once

#include "lacuna/core/error.h"
#include "lacuna/core/tensor.h"

namespace lacuna::cuda {

inline void check_real(const char* who, const TensorView& x) {
  LACUNA_CHECK(x.dtype == DType::f32 || x.dtype == DType::bf16, "{}: {}, expected f32 or bf16", who,
               x.describe());
  LACUNA_CHECK(x.data != nullptr || x.numel() == 0, "{}: {} is null", who, x.describe());
}

inline void check_same_shape(const char* who, const TensorView& a, const TensorView& b) {
  bool same = a.rank == b.rank;
  for (int i = 0; same && i < a.rank; ++i) same = a.shape[i] == b.shape[i];
  LACUNA_CHECK(same, "{}: {} and {}, expected equal shapes", who, a.describe(), b.describe());
}

// [rows, channels] of f32 or bf16 with contiguous channels; kernels count both in 32 bits.
inline void check_rows(const char* who, const TensorView& x) {
  check_real(who, x);
  LACUNA_CHECK(x.rank == 2, "{}: {}, expected 2 dimensions", who, x.describe());
  LACUNA_CHECK(x.stride[1] == 1 || x.shape[1] <= 1, "{}: {} with strided channels, expected 1", who,
               x.describe());
  LACUNA_CHECK(x.shape[0] < INT32_MAX && x.shape[1] < INT32_MAX, "{}: {}, expected below 2^31", who,
               x.describe());
}

inline bool is_bf16(const TensorView& x) {
  return x.dtype == DType::bf16;
}

}  // namespace lacuna::cuda
