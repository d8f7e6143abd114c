// SPDX-License-Identifier: Apache-2.0
// Arrays of other programs as views: numpy and everything that speaks DLPack, without copies.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <array>
#include <cstdint>
#include <string_view>

#include "lacuna/backend/backend.h"
#include "lacuna/core/tensor.h"
#include "lacuna/core/threads.h"
#include "lacuna/core/video_grid.h"

namespace lacuna::python {

namespace nb = nanobind;

using InArray = nb::ndarray<nb::ro, nb::device::cpu>;
using OutArray = nb::ndarray<nb::device::cpu>;

// [batch, num_heads, seq_len, head_dim] of any strides, whichever way round the array has it; batch
// is 1 for an array of three dimensions.
struct Batch {
  TensorView all;
  bool batched = false;  // the array has four dimensions
  int64_t size() const { return all.shape[0]; }
  TensorView at(int64_t b) const;  // [num_heads, seq_len, head_dim]
};

// `layout` is "HND" ([batch,] heads, tokens, channels) or "NHD" ([batch,] tokens, heads, channels).
// Throws Error naming `name` on another layout, number of dimensions or dtype than f32 and bf16.
Batch batch_of(std::string_view name, const InArray& array, std::string_view layout);
Batch batch_of(std::string_view name, const OutArray& array, std::string_view layout);

// Throws Error unless all have as many dimensions and samples, and `out` a place for each element
// and no memory between the first and last element of another.
void check_batches(const Batch& q, const Batch& k, const Batch& v, const Batch& out);

// {frames, height, width} in tokens. Throws Error unless all are 1 to kMaxIndex, so that their
// product fits, and check_text_tokens accepts text_tokens.
VideoGrid grid_of(const std::array<int64_t, 3>& grid, int64_t text_tokens);

// Throws Error below 0 and above INT32_MAX.
void check_text_tokens(int64_t text_tokens);

// One for the process, made at the first use.
Backend& backend();

// Threads of computations from now on, whichever Python thread asks; 0 = OpenMP's own number.
void set_compute_threads(int threads);
int compute_threads();

// While it lives: no GIL, and this thread's OpenMP uses compute_threads(). OpenMP keeps the number
// per thread, and torch, which runs on the same library, must find its own again.
class Computing {
 public:
  Computing();
  ~Computing();
  Computing(const Computing&) = delete;
  Computing& operator=(const Computing&) = delete;

 private:
  nb::gil_scoped_release release_;
  int before_;
};

}  // namespace lacuna::python
