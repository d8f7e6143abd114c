// SPDX-License-Identifier: Apache-2.0
// From views to the loops that elementwise kernels walk.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>

#include "lacuna/backend/cuda/network_args.h"
#include "lacuna/core/tensor.h"

namespace lacuna::cuda {

// Rows of contiguous channels whose quads a kernel may load whole.
bool whole_quads(const void* data, bool bf16, int64_t row_stride);

// Views of one shape as nested loops: no dimension of one element, dimensions that all views walk
// as one joined, and the one that the last view walks in the smallest steps innermost.
class Loops {
 public:
  explicit Loops(std::initializer_list<TensorView> views);

  // Quads of the innermost dimension lie whole in every view. Elements of 2 or 4 bytes.
  bool whole_quads() const;
  // Joins up to `most` bytes to one unit where all views allow it; returns bytes of a unit.
  int join(int bytes, int most);

  // Calls f(walk, element offset of each view) for pieces of at most `most` groups: kernels count
  // in 32 bits.
  using Launch = std::function<void(const Walk& walk, const int64_t (&at)[kWalkViews])>;
  void launch(int group, const Launch& f, int64_t most = int64_t{1} << 30) const;

 private:
  bool multiples_of(int factor, int bytes) const;

  int views_ = 0, rank_ = 0;
  const void* data_[kWalkViews] = {};
  int bytes_[kWalkViews] = {};  // of an element
  int64_t shape_[kWalkRank] = {};
  int64_t stride_[kWalkViews][kWalkRank] = {};
};

// Blocks of a launch with a thread per group.
int32_t walk_blocks(int64_t groups);

}  // namespace lacuna::cuda
