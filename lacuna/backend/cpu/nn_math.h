// SPDX-License-Identifier: Apache-2.0
// Eight f32 lanes over f32 or bf16 memory (AVX2, the floor of every build), and exp on them.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "lacuna/core/bf16.h"

namespace lacuna::cpu {

inline __m256 load8(const float* p) {
  return _mm256_loadu_ps(p);
}

inline __m256 load8(const BFloat16* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

inline void store8(float* p, __m256 x) {
  _mm256_storeu_ps(p, x);
}

// Round to nearest even; NaN becomes the NaN of all ones.
inline void store8(BFloat16* p, __m256 x) {
  const __m256i u = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i word = _mm256_srli_epi32(_mm256_or_si256(_mm256_add_epi32(u, bias), nan), 16);
  const __m128i low = _mm256_castsi256_si128(word), high = _mm256_extracti128_si256(word, 1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packus_epi32(low, high));
}

// The first n (1 to 8) lanes; the others read as zero and are not written.
template <typename T>
inline __m256 load_lanes(const T* p, int64_t n) {
  if (n >= 8) return load8(p);
  T part[8] = {};
  std::memcpy(part, p, static_cast<size_t>(n) * sizeof(T));
  return load8(part);
}

// x with the lanes from n on set to zero.
inline __m256 keep_lanes(__m256 x, int64_t n) {
  if (n >= 8) return x;
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i keep = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lane);
  return _mm256_and_ps(x, _mm256_castsi256_ps(keep));
}

template <typename T>
inline void store_lanes(T* p, __m256 x, int64_t n) {
  if (n >= 8) return store8(p, x);
  T part[8];
  store8(part, x);
  std::memcpy(p, part, static_cast<size_t>(n) * sizeof(T));
}

// body(at, lanes) over [0, n) in steps of eight lanes; only the last call may have fewer.
template <typename Body>
[[gnu::always_inline]] inline void for_lanes(int64_t n, Body&& body) {
  int64_t at = 0;
  for (; at + 8 <= n; at += 8) body(at, int64_t{8});
  if (at < n) body(at, n - at);
}

inline float sum8(__m256 x) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

inline float max8(__m256 x) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

// sum of f(at, lanes) over [0, n), four running sums so that the adds overlap; fixed order.
template <typename F>
[[gnu::always_inline]] inline float reduce_lanes(int64_t n, F&& f) {
  __m256 s0 = _mm256_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
  int64_t at = 0;
  for (; at + 32 <= n; at += 32) {
    s0 = _mm256_add_ps(s0, f(at, int64_t{8}));
    s1 = _mm256_add_ps(s1, f(at + 8, int64_t{8}));
    s2 = _mm256_add_ps(s2, f(at + 16, int64_t{8}));
    s3 = _mm256_add_ps(s3, f(at + 24, int64_t{8}));
  }
  for (; at + 8 <= n; at += 8) s0 = _mm256_add_ps(s0, f(at, int64_t{8}));
  if (at < n) s1 = _mm256_add_ps(s1, f(at, n - at));
  return sum8(_mm256_add_ps(_mm256_add_ps(s0, s1), _mm256_add_ps(s2, s3)));
}

// e^x to about 1 ulp: x = n ln 2 + r, |r| <= ln(2)/2; e^r = 1 + r + r^2 g(r) with g interpolated at
// Chebyshev nodes (error 1e-8). Below -86.6 it stays at 2.5e-38, above 88.73 it is
// infinity; NaN stays NaN.
inline __m256 exp8(__m256 x) {
  // min and max return their second operand when one is NaN.
  x = _mm256_max_ps(_mm256_set1_ps(-86.6f), _mm256_min_ps(_mm256_set1_ps(89.0f), x));
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
  const __m256 magic = _mm256_set1_ps(12582912.0f);
  const __m256 t = _mm256_fmadd_ps(x, _mm256_set1_ps(1.44269504f), magic);
  const __m256 n = _mm256_sub_ps(t, magic);
  // ln 2 in two parts, the first exact in products with |n| < 2^9.
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
  // Half of e^r, doubled at the end: 2^128 is no f32, 2^127 is.
  __m256 p = _mm256_set1_ps(0.5f * 0.00139262504f);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f * 0.00836323295f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f * 0.0416665524f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f * 0.166665763f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.25f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
  const __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);  // its low bits would become an exponent
  const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(t), 23);
  p = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
  return _mm256_or_ps(_mm256_add_ps(p, p), nan);
}

// x / (1 + e^-x)
inline __m256 silu8(__m256 x) {
  const __m256 one = _mm256_set1_ps(1.0f);
  return _mm256_div_ps(x, _mm256_add_ps(one, exp8(_mm256_sub_ps(_mm256_setzero_ps(), x))));
}

// 0.5 x (1 + tanh u), u = sqrt(2/pi) (x + 0.044715 x^3), as x / (1 + e^-2u): no cancellation.
inline __m256 gelu_tanh8(__m256 x) {
  const __m256 square = _mm256_mul_ps(x, x);
  const __m256 inner = _mm256_fmadd_ps(square, _mm256_set1_ps(0.044715f), _mm256_set1_ps(1.0f));
  const __m256 minus_2u = _mm256_mul_ps(_mm256_mul_ps(x, _mm256_set1_ps(-1.59576912f)), inner);
  return _mm256_div_ps(x, _mm256_add_ps(_mm256_set1_ps(1.0f), exp8(minus_2u)));
}

// out[i] = x[i] in out's type; regions equal or disjoint.
template <typename X, typename Out>
inline void convert_row(const X* x, Out* out, int64_t n) {
  for_lanes(
      n, [&](int64_t i, int64_t lanes) __attribute__((always_inline)) {
        store_lanes(out + i, load_lanes(x + i, lanes), lanes);
      });
}

}  // namespace lacuna::cpu
