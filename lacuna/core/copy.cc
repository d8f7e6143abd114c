// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/copy.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "lacuna/core/bf16.h"
#include "lacuna/core/error.h"
#include "lacuna/core/threads.h"

namespace lacuna {
namespace {

struct Axis {
  int64_t size, from, to;  // strides in elements
};

// The copy as nested loops, fewest first: axes of one element are gone, axes that both sides walk
// as one are one, and the axis that `to` walks in the smallest steps is last.
struct Loops {
  int count = 0;
  Axis axis[kMaxRank] = {};

  Loops(const TensorView& from, const TensorView& to) {
    for (int i = 0; i < to.rank; ++i)
      if (to.shape[i] != 1) axis[count++] = {to.shape[i], from.stride[i], to.stride[i]};
    std::stable_sort(axis, axis + count, [](const Axis& a, const Axis& b) { return a.to > b.to; });
    int last = 0;
    for (int i = 1; i < count; ++i) {
      const bool one = axis[last].to == axis[i].size * axis[i].to &&
                       axis[last].from == axis[i].size * axis[i].from;
      if (one) {
        axis[last] = {axis[last].size * axis[i].size, axis[i].from, axis[i].to};
      } else {
        axis[++last] = axis[i];
      }
    }
    count = std::min(count, last + 1);
    if (count == 0) axis[count++] = {1, 1, 1};
  }
};

// Where a row of the innermost axis starts on both sides; rows are counted without divisions, as
// they may be short.
struct Position {
  int64_t index[kMaxRank] = {}, from = 0, to = 0;

  Position(const Loops& loops, int64_t row) {
    for (int i = loops.count - 2; i >= 0; --i) {
      const Axis& axis = loops.axis[i];
      index[i] = row % axis.size;
      row /= axis.size;
      from += index[i] * axis.from;
      to += index[i] * axis.to;
    }
  }
  void next(const Loops& loops) {
    for (int i = loops.count - 2; i >= 0; --i) {
      const Axis& axis = loops.axis[i];
      from += axis.from;
      to += axis.to;
      if (++index[i] < axis.size) return;
      from -= axis.size * axis.from;
      to -= axis.size * axis.to;
      index[i] = 0;
    }
  }
};

template <typename From, typename To>
void copy_row(const From* from, int64_t from_stride, To* to, int64_t to_stride, int64_t n) {
  if constexpr (std::is_same_v<From, To>) {
    if (from_stride == 1 && to_stride == 1) {
      std::memcpy(to, from, static_cast<size_t>(n) * sizeof(To));
      return;
    }
    for (int64_t i = 0; i < n; ++i) to[i * to_stride] = from[i * from_stride];
  } else if (from_stride == 1 && to_stride == 1) {  // a loop of its own: this one is vectorised
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<To>(static_cast<float>(from[i]));
  } else {
    for (int64_t i = 0; i < n; ++i)
      to[i * to_stride] = static_cast<To>(static_cast<float>(from[i * from_stride]));
  }
}

template <typename From, typename To>
void copy_loops(const TensorView& from, const TensorView& to) {
  const Loops loops(from, to);
  const Axis& inner = loops.axis[loops.count - 1];
  constexpr int64_t kTask = 1 << 16;  // elements
  // One long row is cut as well.
  const int64_t piece = std::min(inner.size, kTask);
  const int64_t pieces = (inner.size + piece - 1) / piece;
  int64_t rows = pieces;
  for (int i = 0; i + 1 < loops.count; ++i) rows *= loops.axis[i].size;
  parallel_ranges(rows, std::max<int64_t>(1, kTask / piece), [&](int64_t begin, int64_t end) {
    Position at(loops, begin / pieces);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t start = row % pieces * piece;
      copy_row(static_cast<const From*>(from.data) + at.from + start * inner.from, inner.from,
               static_cast<To*>(to.data) + at.to + start * inner.to, inner.to,
               std::min(piece, inner.size - start));
      if (start + piece >= inner.size) at.next(loops);
    }
  });
}

}  // namespace

void check_copy(const TensorView& from, const TensorView& to) {
  LACUNA_CHECK(from.rank == to.rank &&
                   std::equal(from.shape.begin(), from.shape.begin() + from.rank, to.shape.begin()),
               "copy: {} to {}, expected equal shapes", from.describe(), to.describe());
  const auto plain = [](DType t) { return t == DType::f32 || t == DType::bf16; };
  LACUNA_CHECK(from.dtype == to.dtype || (plain(from.dtype) && plain(to.dtype)),
               "copy: {} to {}, expected equal dtypes, or f32 and bf16", from.describe(),
               to.describe());
  LACUNA_CHECK(!is_quantized(to.dtype) || (from.contiguous() && to.contiguous()),
               "copy: strided {}, expected contiguous blocks", to.describe());
}

void copy_elements(const TensorView& from, const TensorView& to) {
  check_copy(from, to);
  LACUNA_CHECK(from.device == Device::cpu && to.device == Device::cpu,
               "copy: a view outside host memory, expected both on the host");
  if (to.numel() == 0) return;
  if (from.data == to.data && from.dtype == to.dtype && from.stride == to.stride) return;
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

}  // namespace lacuna
