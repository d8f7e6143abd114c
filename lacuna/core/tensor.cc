// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/tensor.h"

#include <algorithm>
#include <cstring>

#include "lacuna/core/error.h"

namespace lacuna {
namespace {

struct DTypeInfo {
  std::string_view name;
  int32_t block_elements;
  int32_t block_bytes;
};

// Indexed by DType. Block sizes of the q* types are GGUF's.
constexpr DTypeInfo kDTypes[] = {
    {"f32", 1, 4},      {"f16", 1, 2},      {"bf16", 1, 2},     {"f64", 1, 8},
    {"f8_e4m3", 1, 1},  {"f8_e5m2", 1, 1},  {"i64", 1, 8},      {"i32", 1, 4},
    {"i16", 1, 2},      {"i8", 1, 1},       {"u8", 1, 1},       {"bool", 1, 1},
    {"q8_0", 32, 34},   {"q4_0", 32, 18},   {"q4_1", 32, 20},   {"q5_0", 32, 22},
    {"q5_1", 32, 24},   {"q2_k", 256, 84},  {"q3_k", 256, 110}, {"q4_k", 256, 144},
    {"q5_k", 256, 176}, {"q6_k", 256, 210},
};

const DTypeInfo& info(DType dtype) {
  return kDTypes[static_cast<int>(dtype)];
}

int64_t checked_numel(std::span<const int64_t> shape) {
  LACUNA_CHECK(shape.size() <= static_cast<size_t>(kMaxRank), "tensor: rank {}, at most {}",
               shape.size(), kMaxRank);
  // A dimension of 0 must not hide the others: strides are their products.
  int64_t n = 1, extent = 1;
  for (int64_t d : shape) {
    LACUNA_CHECK(d >= 0, "tensor: dimension {}, expected 0 or more", d);
    LACUNA_CHECK(!__builtin_mul_overflow(extent, std::max<int64_t>(d, 1), &extent),
                 "tensor: element count overflows 64 bits");
    n *= d;
  }
  return n;
}

}  // namespace

std::string_view dtype_name(DType dtype) {
  return info(dtype).name;
}

bool is_quantized(DType dtype) {
  return info(dtype).block_elements > 1;
}

int64_t storage_bytes(DType dtype, int64_t count) {
  const DTypeInfo& d = info(dtype);
  LACUNA_CHECK(count >= 0 && count % d.block_elements == 0,
               "tensor: {} elements of {}, expected a multiple of {}", count, d.name,
               d.block_elements);
  int64_t bytes = 0;
  LACUNA_CHECK(!__builtin_mul_overflow(count / d.block_elements, int64_t{d.block_bytes}, &bytes),
               "tensor: byte count overflows 64 bits");
  return bytes;
}

int64_t TensorView::numel() const {
  int64_t n = 1;
  for (int i = 0; i < rank; ++i) n *= shape[i];
  return n;
}

bool TensorView::contiguous() const {
  int64_t expected = 1;
  for (int i = rank - 1; i >= 0; --i) {
    if (shape[i] != 1 && stride[i] != expected) return false;
    expected *= shape[i];
  }
  return true;
}

TensorView TensorView::reshape(std::initializer_list<int64_t> new_shape) const {
  LACUNA_CHECK(contiguous(), "reshape: {} is strided, expected contiguous", describe());
  TensorView out = make_view(data, dtype, new_shape);
  out.device = device;
  LACUNA_CHECK(out.numel() == numel(), "reshape: {} to {}, expected equal element counts",
               describe(), out.describe());
  return out;
}

TensorView TensorView::reuse(DType other, std::initializer_list<int64_t> new_shape) const {
  TensorView out = make_view(data, other, new_shape);
  out.device = device;
  LACUNA_CHECK(contiguous() && storage_bytes(other, out.numel()) <= storage_bytes(dtype, numel()),
               "reuse: {} as {}, expected contiguous memory that is large enough", describe(),
               out.describe());
  return out;
}

TensorView TensorView::narrow(int axis, int64_t begin, int64_t size, int64_t step) const {
  LACUNA_CHECK(axis >= 0 && axis < rank && begin >= 0 && size >= 0 && step >= 1 &&
                   (size == 0 || begin + (size - 1) * step < shape[axis]),
               "narrow: {} elements from {} by {} on axis {} of {}, out of range", size, begin,
               step, axis, describe());
  TensorView out = *this;
  out.data = static_cast<char*>(data) + storage_bytes(dtype, begin * stride[axis]);
  out.shape[axis] = size;
  out.stride[axis] *= step;
  return out;
}

TensorView TensorView::slice(int64_t begin, int64_t end) const {
  LACUNA_CHECK(rank > 0 && begin >= 0 && begin <= end && end <= shape[0],
               "slice: [{}, {}) of {}, out of range", begin, end, describe());
  TensorView out = *this;
  out.shape[0] = end - begin;
  out.data = static_cast<char*>(data) + storage_bytes(dtype, begin * stride[0]);
  return out;
}

std::string TensorView::describe() const {
  std::string text = "[";
  for (int i = 0; i < rank; ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "] " + std::string(dtype_name(dtype)) + (device == Device::cpu ? "" : " on cuda");
}

TensorView make_view(void* data, DType dtype, std::span<const int64_t> shape) {
  checked_numel(shape);
  TensorView view;
  view.data = data;
  view.dtype = dtype;
  view.rank = static_cast<int>(shape.size());
  int64_t stride = 1;
  for (int i = view.rank - 1; i >= 0; --i) {
    view.shape[i] = shape[i];
    view.stride[i] = stride;
    stride *= shape[i];
  }
  return view;
}

Tensor::Tensor(DType dtype, std::span<const int64_t> shape, Memory& memory) {
  const int64_t bytes = storage_bytes(dtype, checked_numel(shape));
  memory_ = std::unique_ptr<void, Free>(memory.allocate(static_cast<size_t>(bytes)), Free(memory));
  view_ = make_view(memory_.get(), dtype, shape);
  view_.device = memory.device();
}

Tensor Tensor::zeros(DType dtype, std::initializer_list<int64_t> shape) {
  Tensor t(dtype, shape);
  std::memset(t.view_.data, 0, static_cast<size_t>(storage_bytes(dtype, t.numel())));
  return t;
}

Tensor copy_of(const TensorView& view) {
  Tensor copy(view.dtype, std::span(view.shape.data(), static_cast<size_t>(view.rank)));
  const int64_t bytes = storage_bytes(view.dtype, view.numel());
  if (bytes > 0) std::memcpy(copy.view().data, view.data, static_cast<size_t>(bytes));
  return copy;
}

void check_host(const TensorView& view, DType expected) {
  LACUNA_CHECK(view.dtype == expected, "tensor: {} used as {}", view.describe(),
               dtype_name(expected));
  LACUNA_CHECK(view.device == Device::cpu, "tensor: {} read by host code, expected host memory",
               view.describe());
}

}  // namespace lacuna
