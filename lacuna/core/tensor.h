// SPDX-License-Identifier: Apache-2.0
// TensorView (non-owning, by value) and Tensor (owns aligned memory).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "lacuna/core/memory.h"

namespace lacuna {

// Element types of files and computation. Block-quantised types (q*) follow GGUF: rows are cut
// into blocks of 32 or 256 elements and only whole rows can be addressed.
enum class DType : uint8_t {
  f32,
  f16,
  bf16,
  f64,
  f8_e4m3,
  f8_e5m2,
  i64,
  i32,
  i16,
  i8,
  u8,
  boolean,
  q8_0,
  q4_0,
  q4_1,
  q5_0,
  q5_1,
  q2_k,
  q3_k,
  q4_k,
  q5_k,
  q6_k,
};

inline constexpr int kMaxRank = 5;

std::string_view dtype_name(DType dtype);
bool is_quantized(DType dtype);
// Bytes of `count` elements; for block-quantised types count must be whole blocks, else Error.
int64_t storage_bytes(DType dtype, int64_t count);

struct TensorView {
  void* data = nullptr;
  DType dtype = DType::f32;
  Device device = Device::cpu;
  int rank = 0;
  std::array<int64_t, kMaxRank> shape{};
  std::array<int64_t, kMaxRank> stride{};  // in elements

  int64_t numel() const;
  bool contiguous() const;
  bool empty() const { return data == nullptr || numel() == 0; }

  // Typed pointer to element 0; throws Error if the dtype differs or the view is not in host
  // memory.
  template <typename T>
  T* as() const;

  // The same memory seen with another (contiguous) shape; throws if not contiguous or size differs.
  TensorView reshape(std::initializer_list<int64_t> new_shape) const;
  // The first elements of the same memory as another dtype and shape; throws if not contiguous or
  // too small.
  TensorView reuse(DType other, std::initializer_list<int64_t> new_shape) const;
  // Elements begin, begin + step, ... of one axis, `size` of them.
  TensorView narrow(int axis, int64_t begin, int64_t size, int64_t step = 1) const;
  // Rows [begin, end) of dimension 0.
  TensorView slice(int64_t begin, int64_t end) const;
  // `[2, 3, 4] f32`, for messages.
  std::string describe() const;
};

// View of contiguous row-major memory.
TensorView make_view(void* data, DType dtype, std::span<const int64_t> shape);
inline TensorView make_view(void* data, DType dtype, std::initializer_list<int64_t> shape) {
  return make_view(data, dtype, std::span<const int64_t>(shape.begin(), shape.size()));
}

class Tensor {
 public:
  Tensor() = default;
  // Uninitialised memory. Throws Error (not bad_alloc) when it cannot be had. `memory` must outlive
  // the tensor.
  Tensor(DType dtype, std::span<const int64_t> shape, Memory& memory = host_memory());
  Tensor(DType dtype, std::initializer_list<int64_t> shape, Memory& memory = host_memory())
      : Tensor(dtype, std::span<const int64_t>(shape.begin(), shape.size()), memory) {}
  static Tensor zeros(DType dtype, std::initializer_list<int64_t> shape);

  const TensorView& view() const { return view_; }
  operator const TensorView&() const { return view_; }  // NOLINT: a Tensor is usable as its view
  template <typename T>
  T* as() const {
    return view_.as<T>();
  }
  bool empty() const { return view_.data == nullptr; }
  int64_t numel() const { return view_.numel(); }

 private:
  struct Free {
    Memory* from;
    Free() : from(nullptr) {}  // an initialiser of `from` would come too late for unique_ptr
    explicit Free(Memory& memory) : from(&memory) {}
    void operator()(void* p) const { from->release(p); }
  };
  std::unique_ptr<void, Free> memory_;
  TensorView view_;
};

// Owned copy of a contiguous host view, on the host.
Tensor copy_of(const TensorView& view);

// dtype tag for TensorView::as<T>.
struct BFloat16;
template <typename T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::f64;
};
template <>
struct DTypeOf<BFloat16> {
  static constexpr DType value = DType::bf16;
};
template <>
struct DTypeOf<int64_t> {
  static constexpr DType value = DType::i64;
};
template <>
struct DTypeOf<int32_t> {
  static constexpr DType value = DType::i32;
};
template <>
struct DTypeOf<int8_t> {
  static constexpr DType value = DType::i8;
};
template <>
struct DTypeOf<uint8_t> {
  static constexpr DType value = DType::u8;
};

// Throws Error naming both dtypes, or when the view is not in host memory.
void check_host(const TensorView& view, DType expected);

template <typename T>
T* TensorView::as() const {
  check_host(*this, DTypeOf<T>::value);
  return static_cast<T*>(data);
}

}  // namespace lacuna
