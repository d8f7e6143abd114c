// SPDX-License-Identifier: Apache-2.0
// Reading and writing rows of f32 or bf16, and sums in double with a fixed order.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>

#include "lacuna/core/bf16.h"
#include "lacuna/core/tensor.h"

namespace lacuna::ref {

// A pointer to f32 or bf16 elements; index in elements.
struct Reader {
  const void* data;
  bool bf16;

  float operator[](int64_t i) const {
    return bf16 ? static_cast<float>(static_cast<const BFloat16*>(data)[i])
                : static_cast<const float*>(data)[i];
  }
  void row(int64_t offset, std::span<float> out) const {
    for (size_t c = 0; c < out.size(); ++c) out[c] = (*this)[offset + static_cast<int64_t>(c)];
  }
};

struct Writer {
  void* data;
  bool bf16;

  void set(int64_t i, double value) const {
    const float rounded = static_cast<float>(value);
    if (bf16) {
      static_cast<BFloat16*>(data)[i] = BFloat16(rounded);
    } else {
      static_cast<float*>(data)[i] = rounded;
    }
  }
};

inline Reader reader(const TensorView& x) {
  return {x.data, x.dtype == DType::bf16};
}
inline Writer writer(const TensorView& x) {
  return {x.data, x.dtype == DType::bf16};
}

// Eight running sums, so that the compiler may use vectors while the order stays fixed.
inline double dot(const float* a, const float* b, int64_t n) {
  double lane[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int j = 0; j < 8; ++j)
      lane[j] += static_cast<double>(a[i + j]) * static_cast<double>(b[i + j]);
  double tail = 0.0;
  for (; i < n; ++i) tail += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return ((lane[0] + lane[4]) + (lane[1] + lane[5])) + ((lane[2] + lane[6]) + (lane[3] + lane[7])) +
         tail;
}

inline double silu(double x) {
  return x / (1.0 + std::exp(-x));
}

// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
inline double gelu_tanh(double x) {
  constexpr double kSqrt2OverPi = 0.79788456080286535588;
  return 0.5 * x * (1.0 + std::tanh(kSqrt2OverPi * (x + 0.044715 * x * x * x)));
}

}  // namespace lacuna::ref
