// SPDX-License-Identifier: Apache-2.0
// What ops ask of a tensor. All backends check with the same functions, so that a call that makes
// no sense fails with one text; like attend_check.h, the oracle shares it.
#pragma once

#include "lacuna/core/error.h"
#include "lacuna/core/tensor.h"

namespace lacuna {

// Memory that a backend's ops work on.
enum class Reach : uint8_t { host, anywhere };

inline void check_reach(const char* who, Reach reach, const TensorView& x) {
  LACUNA_CHECK(reach == Reach::anywhere || x.device == Device::cpu,
               "{}: {} on a device, expected host memory", who, x.describe());
  LACUNA_CHECK(x.data != nullptr || x.numel() == 0, "{}: {} is null, expected memory", who,
               x.describe());
}

inline void check_real(const char* who, Reach reach, const TensorView& x) {
  check_reach(who, reach, x);
  LACUNA_CHECK(x.dtype == DType::f32 || x.dtype == DType::bf16, "{}: {}, expected f32 or bf16", who,
               x.describe());
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

inline void check_one_dtype(const char* who, const TensorView& a, const TensorView& b) {
  LACUNA_CHECK(a.dtype == b.dtype, "{}: {} and {}, expected one dtype", who, a.describe(),
               b.describe());
}

// f32 or bf16 with contiguous channels: [rows, channels], or 3 dimensions [heads, tokens,
// channels].
inline void check_rows(const char* who, Reach reach, const TensorView& x, int rank = 2) {
  check_real(who, reach, x);
  check_rank(who, x, rank);
  check_channels(who, x);
}

}  // namespace lacuna
