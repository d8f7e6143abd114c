// SPDX-License-Identifier: Apache-2.0
// Reproducible numbers for tests: the same on every machine and standard library.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>
#include <vector>

#include "lacuna/core/bf16.h"
#include "lacuna/core/tensor.h"

namespace lacuna::test {

class Rng {
 public:
  // The seed is mixed first: neighbouring seeds must not give shifted copies of one stream.
  explicit Rng(uint64_t seed) : state_(seed) { state_ = next() ^ 0x632BE59BD9B4E019ull; }

  uint64_t next() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }  // [0, 1)
  double uniform(double low, double high) { return low + (high - low) * uniform(); }
  int64_t integer(int64_t low, int64_t high) {  // both included
    return low + static_cast<int64_t>(next() % static_cast<uint64_t>(high - low + 1));
  }
  bool chance(double p) { return uniform() < p; }
  double normal() {
    const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
    return radius * std::cos(2.0 * std::numbers::pi * uniform());
  }
  template <typename T>
  const T& pick(const std::vector<T>& values) {
    return values[static_cast<size_t>(integer(0, static_cast<int64_t>(values.size()) - 1))];
  }

 private:
  uint64_t state_;
};

// Element i (in elements) of f32 or bf16 memory.
inline double get(const TensorView& x, int64_t i) {
  if (x.dtype == DType::bf16) return static_cast<float>(x.as<BFloat16>()[i]);
  return x.as<float>()[i];
}

inline void put(const TensorView& x, int64_t i, double value) {
  if (x.dtype == DType::bf16) {
    x.as<BFloat16>()[i] = BFloat16(static_cast<float>(value));
  } else {
    x.as<float>()[i] = static_cast<float>(value);
  }
}

// Offset in elements of logical element n, counted row-major over the shape.
inline int64_t offset_of(const TensorView& x, int64_t n) {
  int64_t at = 0;
  for (int i = x.rank - 1; i >= 0; --i) {
    at += n % x.shape[i] * x.stride[i];
    n /= x.shape[i];
  }
  return at;
}

// f(logical index, offset in elements) for every element, row-major.
template <typename F>
void for_each(const TensorView& x, F&& f) {
  const int64_t n = x.numel();
  if (n == 0) return;
  const int64_t row = x.rank > 0 ? x.shape[x.rank - 1] : 1;
  const int64_t step = x.rank > 0 ? x.stride[x.rank - 1] : 1;
  for (int64_t begin = 0; begin < n; begin += row) {
    const int64_t at = offset_of(x, begin);
    for (int64_t c = 0; c < row; ++c) f(begin + c, at + c * step);
  }
}

inline std::vector<double> values(const TensorView& x) {
  std::vector<double> out(static_cast<size_t>(x.numel()));
  for_each(x, [&](int64_t n, int64_t at) { out[static_cast<size_t>(n)] = get(x, at); });
  return out;
}

inline void fill_normal(const TensorView& x, uint64_t seed, double scale = 1.0,
                        double offset = 0.0) {
  Rng rng(seed);
  for_each(x, [&](int64_t, int64_t at) { put(x, at, offset + scale * rng.normal()); });
}

inline Tensor random_tensor(DType dtype, std::initializer_list<int64_t> shape, uint64_t seed,
                            double scale = 1.0, double offset = 0.0) {
  Tensor t(dtype, shape);
  fill_normal(t, seed, scale, offset);
  return t;
}

inline std::vector<float> random_floats(int64_t n, uint64_t seed, double scale = 1.0,
                                        double offset = 0.0) {
  Rng rng(seed);
  std::vector<float> out(static_cast<size_t>(n));
  for (float& x : out) x = static_cast<float>(offset + scale * rng.normal());
  return out;
}

}  // namespace lacuna::test
