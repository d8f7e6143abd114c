// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/copy.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "lacuna/core/bf16.h"
#include "lacuna/core/convert.h"
#include "lacuna/core/error.h"
#include "lacuna/core/threads.h"

namespace lacuna {
namespace {

// Operands of one loop: what is written, and one or two that are read.
constexpr int kOut = 0, kMaxOperands = 3;

struct Axis {
  int64_t size;
  int64_t stride[kMaxOperands];  // in elements; 0 for operands there are not
};

// The work as nested loops, fewest first: axes of one element are gone, axes that all operands walk
// as one are one, and the axis that the output walks in the smallest steps is last.
struct Loops {
  int count = 0;
  Axis axis[kMaxRank] = {};

  Loops(const TensorView& out, const TensorView& a, const TensorView& b) {
    for (int i = 0; i < out.rank; ++i)
      if (out.shape[i] != 1)
        axis[count++] = {out.shape[i], {out.stride[i], a.stride[i], b.stride[i]}};
    std::stable_sort(axis, axis + count,
                     [](const Axis& x, const Axis& y) { return x.stride[kOut] > y.stride[kOut]; });
    int last = 0;
    for (int i = 1; i < count; ++i) {
      if (one(axis[last], axis[i])) {
        axis[i].size *= axis[last].size;
        axis[last] = axis[i];
      } else {
        axis[++last] = axis[i];
      }
    }
    count = std::min(count, last + 1);
    if (count == 0) axis[count++] = {1, {1, 1, 1}};
  }

  const Axis& inner() const { return axis[count - 1]; }

 private:
  static bool one(const Axis& outer, const Axis& inner) {
    for (int n = 0; n < kMaxOperands; ++n)
      if (outer.stride[n] != inner.size * inner.stride[n]) return false;
    return true;
  }
};

// Where a row of the innermost axis starts in every operand; rows are counted without divisions, as
// they may be short.
struct Position {
  int64_t index[kMaxRank] = {}, at[kMaxOperands] = {};

  Position(const Loops& loops, int64_t row) {
    for (int i = loops.count - 2; i >= 0; --i) {
      const Axis& axis = loops.axis[i];
      index[i] = row % axis.size;
      row /= axis.size;
      for (int n = 0; n < kMaxOperands; ++n) at[n] += index[i] * axis.stride[n];
    }
  }
  void next(const Loops& loops) {
    for (int i = loops.count - 2; i >= 0; --i) {
      const Axis& axis = loops.axis[i];
      const bool wraps = ++index[i] == axis.size;
      const int64_t steps = wraps ? 1 - axis.size : 1;
      for (int n = 0; n < kMaxOperands; ++n) at[n] += steps * axis.stride[n];
      if (!wraps) return;
      index[i] = 0;
    }
  }
};

// Calls row(offsets, count) for runs of the innermost axis, cut by shape.
template <typename Row>
void for_rows(const Loops& loops, const Row& row) {
  constexpr int64_t kTask = 1 << 16;  // elements
  const Axis& inner = loops.inner();
  const int64_t piece = std::min(inner.size, kTask);  // one long row is cut as well
  const int64_t pieces = (inner.size + piece - 1) / piece;
  int64_t rows = pieces;
  for (int i = 0; i + 1 < loops.count; ++i) rows *= loops.axis[i].size;
  parallel_ranges(rows, std::max<int64_t>(1, kTask / piece), [&](int64_t begin, int64_t end) {
    Position position(loops, begin / pieces);
    int64_t start = begin % pieces * piece;
    for (int64_t i = begin; i < end; ++i) {
      int64_t at[kMaxOperands];
      for (int n = 0; n < kMaxOperands; ++n) at[n] = position.at[n] + start * inner.stride[n];
      row(at, std::min(piece, inner.size - start));
      start += piece;
      if (start < inner.size) continue;
      start = 0;
      position.next(loops);
    }
  });
}

template <typename From, typename To>
void copy_row(const From* from, int64_t from_stride, To* to, int64_t to_stride, int64_t n) {
  if constexpr (std::is_same_v<From, To>) {
    if (to_stride == 1 && from_stride == 1) {
      std::memcpy(to, from, static_cast<size_t>(n) * sizeof(To));
    } else if (to_stride == 1 && from_stride == 0) {
      std::fill_n(to, n, *from);
    } else {
      for (int64_t i = 0; i < n; ++i) to[i * to_stride] = from[i * from_stride];
    }
  } else if (from_stride == 1 && to_stride == 1) {  // a loop of its own: unit strides
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<To>(static_cast<float>(from[i]));
  } else {
    for (int64_t i = 0; i < n; ++i)
      to[i * to_stride] = static_cast<To>(static_cast<float>(from[i * from_stride]));
  }
}

template <typename From, typename To>
void copy_loops(const TensorView& from, const TensorView& to) {
  const Loops loops(to, from, from);
  const Axis& inner = loops.inner();
  for_rows(loops, [&](const int64_t* at, int64_t n) {
    copy_row(static_cast<const From*>(from.data) + at[1], inner.stride[1],
             static_cast<To*>(to.data) + at[kOut], inner.stride[kOut], n);
  });
}

template <typename T>
void add_loops(const TensorView& a, const TensorView& b, const TensorView& out) {
  const Loops loops(out, a, b);
  const auto [out_step, a_step, b_step] = loops.inner().stride;
  for_rows(loops, [&, out_step = out_step, a_step = a_step, b_step = b_step](const int64_t* at,
                                                                             int64_t n) {
    T* to = static_cast<T*>(out.data) + at[kOut];
    const T *x = static_cast<const T*>(a.data) + at[1], *y = static_cast<const T*>(b.data) + at[2];
    if (out_step == 1 && a_step == 1 && b_step == 1) {  // a loop of its own: unit strides
      for (int64_t i = 0; i < n; ++i)
        to[i] = T(static_cast<float>(x[i]) + static_cast<float>(y[i]));
    } else {
      for (int64_t i = 0; i < n; ++i)
        to[i * out_step] = T(static_cast<float>(x[i * a_step]) + static_cast<float>(y[i * b_step]));
    }
  });
}

bool same_shape(const TensorView& a, const TensorView& b) {
  return a.rank == b.rank && std::equal(a.shape.begin(), a.shape.begin() + a.rank, b.shape.begin());
}

bool is_plain(DType dtype) {
  return dtype == DType::f32 || dtype == DType::bf16;
}

}  // namespace

void check_copy(const TensorView& from, const TensorView& to) {
  LACUNA_CHECK(same_shape(from, to), "copy: {} to {}, expected equal shapes", from.describe(),
               to.describe());
  const bool decodes =
      from.dtype != DType::boolean && from.contiguous() && to.contiguous() && is_plain(to.dtype);
  LACUNA_CHECK(from.dtype == to.dtype || (is_plain(from.dtype) && is_plain(to.dtype)) || decodes,
               "copy: {} to {}, expected equal dtypes, f32 and bf16, or contiguous numbers to one "
               "of them",
               from.describe(), to.describe());
  LACUNA_CHECK(!is_quantized(to.dtype) || (from.contiguous() && to.contiguous()),
               "copy: strided {}, expected contiguous blocks", to.describe());
}

void check_add(const TensorView& a, const TensorView& b, const TensorView& out) {
  LACUNA_CHECK(same_shape(a, out) && same_shape(b, out) && a.dtype == out.dtype &&
                   b.dtype == out.dtype && is_plain(out.dtype),
               "add: {} and {} to {}, expected one shape and dtype, f32 or bf16", a.describe(),
               b.describe(), out.describe());
}

void copy_elements(const TensorView& from, const TensorView& to) {
  check_copy(from, to);
  LACUNA_CHECK(from.device == Device::cpu && to.device == Device::cpu,
               "copy: {} to {}, expected host memory", from.describe(), to.describe());
  if (to.numel() == 0) return;
  if (from.data == to.data && from.dtype == to.dtype && from.stride == to.stride) return;
  if (from.dtype != to.dtype && from.contiguous() && to.contiguous()) return convert(from, to);
  if (from.dtype != to.dtype) {
    if (from.dtype == DType::f32) return copy_loops<float, BFloat16>(from, to);
    return copy_loops<BFloat16, float>(from, to);
  }
  if (is_quantized(to.dtype)) {
    std::memcpy(to.data, from.data, static_cast<size_t>(storage_bytes(to.dtype, to.numel())));
    return;
  }
  switch (storage_bytes(to.dtype, 1)) {
    case 1:
      return copy_loops<uint8_t, uint8_t>(from, to);
    case 2:
      return copy_loops<uint16_t, uint16_t>(from, to);
    case 4:
      return copy_loops<uint32_t, uint32_t>(from, to);
    default:
      return copy_loops<uint64_t, uint64_t>(from, to);
  }
}

void add_elements(const TensorView& a, const TensorView& b, const TensorView& out) {
  check_add(a, b, out);
  LACUNA_CHECK(a.device == Device::cpu && b.device == Device::cpu && out.device == Device::cpu,
               "add: {} and {} to {}, expected host memory", a.describe(), b.describe(),
               out.describe());
  if (out.numel() == 0) return;
  if (out.dtype == DType::f32) return add_loops<float>(a, b, out);
  add_loops<BFloat16>(a, b, out);
}

}  // namespace lacuna
