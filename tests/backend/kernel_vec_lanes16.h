// SPDX-License-Identifier: Apache-2.0
// Sixteen lanes in plain C++: runs what kernel_tile.h makes of an AVX-512 vector on any machine.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "lacuna/backend/cpu/kernel_tile.h"
#include "lacuna/core/bf16.h"

namespace lacuna::cpu {
namespace {

struct VecLanes16 {
  struct F {
    float x[16];
  };
  static constexpr int kLanes = 16, kPanel = 12, kVectors = 2;
  static constexpr bool kPairs = false;

  template <class Op>
  static F each(Op op) {
    F r;
    for (int i = 0; i < kLanes; ++i) r.x[i] = op(i);
    return r;
  }
  static F set(float x) {
    return each([&](int) { return x; });
  }
  static F zero() { return set(0.0f); }
  static F load(const float* p) {
    return each([&](int i) { return p[i]; });
  }
  static F load_n(const float* p, int n) {
    return each([&](int i) { return i < n ? p[i] : 0.0f; });
  }
  static F load_bf16(const uint16_t* p, int n) {
    return each([&](int i) {
      BFloat16 b;
      if (i < n) b.bits = p[i];
      return static_cast<float>(b);
    });
  }
  static void store(float* p, F a) { std::copy_n(a.x, kLanes, p); }
  static void store_n(float* p, F a, int n) { std::copy_n(a.x, std::min(n, kLanes), p); }
  static void store_bf16(uint16_t* p, F a, int n) {
    for (int i = 0; i < std::min(n, kLanes); ++i) p[i] = BFloat16(a.x[i]).bits;
  }
  static F add(F a, F b) {
    return each([&](int i) { return a.x[i] + b.x[i]; });
  }
  static F sub(F a, F b) {
    return each([&](int i) { return a.x[i] - b.x[i]; });
  }
  static F mul(F a, F b) {
    return each([&](int i) { return a.x[i] * b.x[i]; });
  }
  static F fma(F a, F b, F c) {
    return each([&](int i) { return a.x[i] * b.x[i] + c.x[i]; });
  }
  static F dot(F a, F b, F c) { return fma(a, b, c); }
  static F max(F a, F b) {
    return each([&](int i) { return a.x[i] > b.x[i] ? a.x[i] : b.x[i]; });
  }
  static F raise(F m, F a, F slack) {
    return each([&](int i) { return a.x[i] > m.x[i] + slack.x[i] ? a.x[i] : m.x[i]; });
  }
  static F finite_or_zero(F a) {
    return each(
        [&](int i) { return a.x[i] == -std::numeric_limits<float>::infinity() ? 0.0f : a.x[i]; });
  }
  static F inverse_or_zero(F a) {
    return each([&](int i) { return a.x[i] == 0.0f ? 0.0f : 1.0f / a.x[i]; });
  }
  static F exp2(F a) {
    return each([&](int i) { return std::exp2(a.x[i]); });
  }
  static F exp2_p(F a) { return exp2(a); }
  static void transpose(F r[16]) {
    for (int i = 0; i < kLanes; ++i)
      for (int j = 0; j < i; ++j) std::swap(r[i].x[j], r[j].x[i]);
  }
};

const KernelOps kAttendLanes16 = TileKernel<VecLanes16>::ops("f32, 16 plain lanes");

}  // namespace
}  // namespace lacuna::cpu
