// SPDX-License-Identifier: Apache-2.0
#include "python/arrays.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <omp.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <utility>

#include "lacuna/core/error.h"
#include "lacuna/engine/policy.h"

namespace lacuna::python {

namespace {

std::atomic<int> chosen_threads{0};

DType dtype_of(std::string_view name, nb::dlpack::dtype dtype) {
  constexpr nb::dlpack::dtype kBf16{static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat), 16, 1};
  if (dtype == nb::dtype<float>()) return DType::f32;
  if (dtype == kBf16) return DType::bf16;
  constexpr std::string_view kKinds[] = {"int",    "uint",    "float", "opaque",
                                         "bfloat", "complex", "bool"};
  fail("{}: {}{}, expected float32 or bfloat16", name,
       dtype.code < std::size(kKinds) ? kKinds[dtype.code] : "type", dtype.bits);
}

template <typename Array>
Batch make_batch(std::string_view name, const Array& array, std::string_view layout) {
  LACUNA_CHECK(layout == "HND" || layout == "NHD", "layout: '{}', expected HND or NHD", layout);
  const bool batched = array.ndim() == 4;
  LACUNA_CHECK(batched || array.ndim() == 3, "{}: {} dimensions, expected 3 or 4: [B,]{}", name,
               array.ndim(), layout == "HND" ? "H,N,D" : "N,H,D");
  Batch batch;
  batch.batched = batched;
  TensorView& all = batch.all;
  all.data = const_cast<void*>(static_cast<const void*>(array.data()));
  all.dtype = dtype_of(name, array.dtype());
  all.rank = 4;
  all.shape[0] = 1;
  for (size_t i = batched ? 0 : 1; i < 4; ++i) {
    all.shape[i] = static_cast<int64_t>(array.shape(batched ? i : i - 1));
    all.stride[i] = array.stride(batched ? i : i - 1);
  }
  if (layout == "NHD") {
    std::swap(all.shape[1], all.shape[2]);
    std::swap(all.stride[1], all.stride[2]);
  }
  // Of an empty array, or of one channel, strides may be anything.
  if (all.shape[3] == 1 || all.numel() == 0) all.stride[3] = 1;
  LACUNA_CHECK(all.stride[3] == 1,
               "{}: channels {} elements apart, expected them side by side: pass a contiguous copy",
               name, all.stride[3]);
  return batch;
}

// First byte and the byte past the last one.
std::pair<intptr_t, intptr_t> extent(const TensorView& view) {
  int64_t low = 0, high = 0;
  for (int i = 0; i < view.rank; ++i) {
    const int64_t last = (view.shape[i] - 1) * view.stride[i];
    (last < 0 ? low : high) += last;
  }
  const auto base = reinterpret_cast<intptr_t>(view.data);
  return {base + low * storage_bytes(view.dtype, 1),
          base + (high + 1) * storage_bytes(view.dtype, 1)};
}

void check_apart(const Batch& out, std::string_view other, const Batch& in) {
  if (out.all.numel() == 0 || in.all.numel() == 0) return;
  const auto [a, a_end] = extent(out.all);
  const auto [b, b_end] = extent(in.all);
  LACUNA_CHECK(a_end <= b || b_end <= a, "out: memory overlaps that of {}, expected memory apart",
               other);
}

// Elements that share memory would be written by several threads, and one of their rows would win.
// From the smallest stride on, each must step over all that the smaller ones reach.
void check_distinct(const Batch& out) {
  if (out.all.numel() == 0) return;
  std::array<std::pair<int64_t, int64_t>, 4> dims;  // stride, steps
  for (size_t i = 0; i < 4; ++i) dims[i] = {std::abs(out.all.stride[i]), out.all.shape[i] - 1};
  std::sort(dims.begin(), dims.end());
  int64_t reach = 0;
  for (const auto& [stride, steps] : dims) {
    if (steps == 0) continue;
    LACUNA_CHECK(stride > reach, "out: strides {}, expected a place in memory for each element",
                 fmt::join(out.all.stride.begin(), out.all.stride.begin() + 4, ","));
    reach += stride * steps;
  }
}

}  // namespace

TensorView Batch::at(int64_t b) const {
  TensorView one = all;
  one.rank = 3;
  one.data = static_cast<char*>(all.data) + b * all.stride[0] * storage_bytes(all.dtype, 1);
  for (size_t i = 0; i < 3; ++i) {
    one.shape[i] = all.shape[i + 1];
    one.stride[i] = all.stride[i + 1];
  }
  one.shape[3] = one.stride[3] = 0;
  return one;
}

Batch batch_of(std::string_view name, const InArray& array, std::string_view layout) {
  return make_batch(name, array, layout);
}

Batch batch_of(std::string_view name, const OutArray& array, std::string_view layout) {
  return make_batch(name, array, layout);
}

void check_batches(const Batch& q, const Batch& k, const Batch& v, const Batch& out) {
  const auto dimensions = [](const Batch& x) { return x.batched ? 4 : 3; };
  LACUNA_CHECK(k.batched == q.batched && v.batched == q.batched && out.batched == q.batched,
               "attention: q, k, v, out of {}, {}, {} and {} dimensions, expected as many of all",
               dimensions(q), dimensions(k), dimensions(v), dimensions(out));
  LACUNA_CHECK(k.size() == q.size() && v.size() == q.size() && out.size() == q.size(),
               "attention: q, k, v, out of batches of {}, {}, {} and {}, expected one size",
               q.size(), k.size(), v.size(), out.size());
  check_distinct(out);
  check_apart(out, "q", q);
  check_apart(out, "k", k);
  check_apart(out, "v", v);
}

void check_text_tokens(int64_t text_tokens) {
  LACUNA_CHECK(text_tokens >= 0 && text_tokens <= INT32_MAX, "text_tokens: {}, expected 0 to {}",
               text_tokens, INT32_MAX);
}

VideoGrid grid_of(const std::array<int64_t, 3>& grid, int64_t text_tokens) {
  for (const int64_t size : grid)
    LACUNA_CHECK(size > 0 && size <= kMaxIndex,
                 "grid: {}, expected frames, height, width of 1 to {}", fmt::join(grid, "x"),
                 kMaxIndex);
  check_text_tokens(text_tokens);
  return {grid[0], grid[1], grid[2]};
}

Backend& backend() {
  static const std::unique_ptr<Backend> backend = make_backend();
  return *backend;
}

void set_compute_threads(int threads) {
  LACUNA_CHECK(threads >= 0 && threads <= 1024,
               "threads: {}, expected 1 to 1024, or 0 for OpenMP's", threads);
  chosen_threads = threads;
}

int compute_threads() {
  const int chosen = chosen_threads;
  return chosen > 0 ? chosen : num_threads();
}

// OpenMP's own call: set_num_threads() has limits, which a number that is there already may exceed.
Computing::Computing() : before_(num_threads()) {
  omp_set_num_threads(compute_threads());
}

Computing::~Computing() {
  omp_set_num_threads(before_);
}

}  // namespace lacuna::python
