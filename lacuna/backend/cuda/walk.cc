// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cuda/walk.h"

#include <algorithm>
#include <numeric>

#include "lacuna/core/error.h"

namespace lacuna::cuda {

bool whole_quads(const void* data, bool bf16, int64_t row_stride) {
  return reinterpret_cast<uintptr_t>(data) % (bf16 ? 8 : 16) == 0 && row_stride % 4 == 0;
}

int32_t walk_blocks(int64_t groups) {
  return static_cast<int32_t>((groups + kWalkThreads - 1) / kWalkThreads);
}

Loops::Loops(std::initializer_list<TensorView> views) {
  const TensorView& last = *(views.end() - 1);
  int order[kWalkRank];
  std::iota(order, order + kWalkRank, 0);
  std::stable_sort(order, order + last.rank,
                   [&](int a, int b) { return last.stride[a] > last.stride[b]; });
  for (const TensorView& view : views) {
    data_[views_] = view.data;
    bytes_[views_++] = static_cast<int>(storage_bytes(view.dtype, 1));
  }
  for (int n = 0; n < last.rank; ++n) {
    const int from = order[n];
    if (last.shape[from] == 1) continue;
    bool joins = rank_ > 0;
    for (int v = 0; joins && v < views_; ++v)
      joins = stride_[v][rank_ - 1] == last.shape[from] * views.begin()[v].stride[from];
    if (!joins) shape_[rank_++] = 1;
    shape_[rank_ - 1] *= last.shape[from];
    for (int v = 0; v < views_; ++v) stride_[v][rank_ - 1] = views.begin()[v].stride[from];
  }
  if (rank_ > 0) return;
  shape_[rank_++] = 1;
  for (int v = 0; v < views_; ++v) stride_[v][0] = 1;
}

// Elements in `factor`s that are contiguous, of one loop row, and aligned as a whole.
bool Loops::multiples_of(int factor, int bytes) const {
  const int inner = rank_ - 1;
  for (int v = 0; v < views_; ++v) {
    if (stride_[v][inner] != 1 || reinterpret_cast<uintptr_t>(data_[v]) % (factor * bytes_[v]) != 0)
      return false;
    for (int i = 0; i < inner; ++i)
      if (stride_[v][i] % factor != 0) return false;
  }
  return bytes == 0 || shape_[inner] % factor == 0;
}

bool Loops::whole_quads() const {
  return multiples_of(4, 0);  // the end of a row may be shorter
}

int Loops::join(int bytes, int most) {
  int factor = most / bytes;
  while (factor > 1 && !multiples_of(factor, bytes)) factor /= 2;
  if (factor == 1) return bytes;
  shape_[rank_ - 1] /= factor;
  for (int v = 0; v < views_; ++v) {
    bytes_[v] *= factor;
    for (int i = 0; i + 1 < rank_; ++i) stride_[v][i] /= factor;
  }
  return bytes * factor;
}

void Loops::launch(int group, const Launch& f, int64_t most) const {
  const int inner = rank_ - 1;
  const auto groups = [&](int64_t size) { return (size + group - 1) / group; };
  // The longest loop is cut when all of them together are too many.
  const int cut = static_cast<int>(std::max_element(shape_, shape_ + rank_) - shape_);
  int64_t others = 1;
  for (int i = 0; i < rank_; ++i)
    if (i != cut) others *= i == inner ? groups(shape_[i]) : shape_[i];
  int64_t step = std::max<int64_t>(1, most / others);
  if (cut == inner) step *= group;
  LACUNA_CHECK(others <= most, "cuda: {} elements in all but one dimension, expected {}", others,
               most);
  for (int64_t begin = 0; begin < shape_[cut]; begin += step) {
    Walk walk{};
    walk.rank = rank_;
    walk.group = group;
    int64_t total = 1;
    for (int i = 0; i < rank_; ++i) {
      const int64_t size = i == cut ? std::min(step, shape_[cut] - begin) : shape_[i];
      walk.shape[i] = static_cast<uint32_t>(size);
      total *= i == inner ? groups(size) : size;
    }
    walk.groups = static_cast<uint32_t>(groups(walk.shape[inner]));
    walk.total = static_cast<uint32_t>(total);
    int64_t at[kWalkViews] = {};
    for (int v = 0; v < views_; ++v) {
      std::copy_n(stride_[v], rank_, walk.stride[v]);
      at[v] = begin * stride_[v][cut];
    }
    f(walk, at);
  }
}

}  // namespace lacuna::cuda
