// SPDX-License-Identifier: Apache-2.0
// Argument checks shared by the network and selection operations of this backend.
#pragma once

#include "lacuna/core/bf16.h"
#include "lacuna/core/error.h"
#include "lacuna/core/tensor.h"

namespace lacuna::cpu {

inline void check_real(const char* who, const TensorView& x) {
  LACUNA_CHECK(x.device == Device::cpu && (x.dtype == DType::f32 || x.dtype == DType::bf16),
               "{}: {}{}, expected f32 or bf16 in host memory", who, x.describe(),
               x.device == Device::cpu ? "" : " on a device");
  LACUNA_CHECK(x.data != nullptr || x.numel() == 0, "{}: {} is null", who, x.describe());
}

inline void check_rank(const char* who, const TensorView& x, int rank) {
  LACUNA_CHECK(x.rank == rank, "{}: {}, expected {} dimensions", who, x.describe(), rank);
}

inline void check_channels(const char* who, const TensorView& x) {
  const int last = x.rank - 1;
  LACUNA_CHECK(last >= 0 && (x.stride[last] == 1 || x.shape[last] <= 1),
               "{}: {} with strided channels, expected contiguous", who, x.describe());
}

inline void check_same_shape(const char* who, const TensorView& a, const TensorView& b) {
  bool same = a.rank == b.rank;
  for (int i = 0; same && i < a.rank; ++i) same = a.shape[i] == b.shape[i];
  LACUNA_CHECK(same, "{}: {} and {}, expected equal shapes", who, a.describe(), b.describe());
}

// [rows, channels] of f32 or bf16 with contiguous channels.
inline void check_rows(const char* who, const TensorView& x) {
  check_real(who, x);
  check_rank(who, x, 2);
  check_channels(who, x);
}

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
inline int64_t round_up(int64_t a, int64_t b) {
  return ceil_div(a, b) * b;
}
inline int64_t element_bytes(DType dtype) {
  return dtype == DType::f32 ? 4 : 2;
}

// Calls f with a typed null pointer, so that a template can be chosen by dtype (f32 or bf16).
template <typename F>
void with_type(DType dtype, F&& f) {
  if (dtype == DType::f32) {
    f(static_cast<float*>(nullptr));
  } else {
    f(static_cast<BFloat16*>(nullptr));
  }
}

// Address of element `offset`.
inline char* at(const TensorView& x, int64_t offset) {
  return static_cast<char*>(x.data) + offset * element_bytes(x.dtype);
}

}  // namespace lacuna::cpu
