// SPDX-License-Identifier: Apache-2.0
// Elements of tensors as floats, whatever their type.
#pragma once

#include "lacuna/backend/cuda/ptx.cuh"

namespace lacuna::cuda {

struct F32 {};  // beside Bf16 and F16

template <class T>
struct ElementBits {
  using Type = uint16_t;
};
template <>
struct ElementBits<F32> {
  using Type = float;
};

struct alignas(16) Float4 {
  float v[4];
};

LACUNA_DEVICE int min_of(int a, int b) {
  return a < b ? a : b;
}

LACUNA_DEVICE float warp_sum(float x) {
  LACUNA_UNROLL
  for (int lanes = 16; lanes > 0; lanes /= 2) x += shuffle_xor(x, lanes);
  return x;
}

LACUNA_DEVICE float warp_max(float x) {
  LACUNA_UNROLL
  for (int lanes = 16; lanes > 0; lanes /= 2) x = max_of(x, shuffle_xor(x, lanes));
  return x;
}

LACUNA_DEVICE float to_float(float x, F32) {
  return x;
}
LACUNA_DEVICE float from_float(float x, F32) {
  return x;
}
template <class T>
LACUNA_DEVICE uint16_t from_float(float x, T) {
  return static_cast<uint16_t>(pack_pair(x, 0.0f, T()));
}

template <class T>
LACUNA_DEVICE float load_element(const void* base, int64_t i) {
  return to_float(read_global(static_cast<const typename ElementBits<T>::Type*>(base) + i), T());
}
template <class T>
LACUNA_DEVICE void store_element(void* base, int64_t i, float x) {
  write_global(static_cast<typename ElementBits<T>::Type*>(base) + i, from_float(x, T()));
}

}  // namespace lacuna::cuda
