// SPDX-License-Identifier: Apache-2.0
// Eight f32 lanes of AVX2 + FMA. Included by kernel files only.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace lacuna::cpu {
namespace {

struct VecAvx2 {
  using F = __m256;
  static constexpr int kLanes = 8;
  static constexpr int kPanel =
      6;  // 6 x 2 accumulators, 2 operands, 1 broadcast: 15 of 16 registers
  static constexpr int kVectors = 2;

  static F zero() { return _mm256_setzero_ps(); }
  static F set(float x) { return _mm256_set1_ps(x); }
  static F load(const float* p) { return _mm256_load_ps(p); }
  static void store(float* p, F x) { _mm256_store_ps(p, x); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }

  // x where x > m + slack, else m.
  static F raise(F m, F x, F slack) {
    return _mm256_blendv_ps(m, x, _mm256_cmp_ps(x, add(m, slack), _CMP_GT_OQ));
  }
  // x where x is not -inf, else 0: keeps (-inf) - (-inf) out of the exponent.
  static F finite_or_zero(F x) {
    return _mm256_and_ps(x, _mm256_cmp_ps(x, set(-__builtin_inff()), _CMP_NEQ_UQ));
  }
  // 1 / x, 0 where x = 0.
  static F inverse_or_zero(F x) {
    return _mm256_and_ps(_mm256_div_ps(set(1.0f), x), _mm256_cmp_ps(x, zero(), _CMP_NEQ_UQ));
  }

  // 2^x for x <= 128, relative error 1e-7; exactly 0 below -126.5 and for -inf; NaN stays NaN.
  static F exp2(F x) {
    x = _mm256_max_ps(set(-127.0f), _mm256_min_ps(set(128.0f), x));  // NaN second: it survives
    const F r = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const F f = _mm256_sub_ps(x, r);
    F p = set(1.3276472e-3f);
    p = fma(p, f, set(9.67554133e-3f));
    p = fma(p, f, set(5.55071327e-2f));
    p = fma(p, f, set(2.40221197e-1f));
    p = fma(p, f, set(6.93146967e-1f));
    p = fma(p, f, set(1.0f));
    const __m256i n = _mm256_add_epi32(_mm256_cvtps_epi32(r), _mm256_set1_epi32(127));
    return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(n, 23)));
  }

  // The first n lanes, n at most 8; the rest load as zero and are not stored. No masked stores: AMD
  // runs vmaskmovps to memory in microcode.
  static F load_n(const float* p, int n) {
    if (n >= 8) return _mm256_loadu_ps(p);
    const __m256i lanes =
        _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    return _mm256_maskload_ps(p, lanes);
  }
  static void store_n(float* p, F x, int n) {
    if (n >= 8) return _mm256_storeu_ps(p, x);
    __m128 part = _mm256_castps256_ps128(x);
    if (n & 4) {
      _mm_storeu_ps(p, part);
      part = _mm256_extractf128_ps(x, 1);
      p += 4;
    }
    if (n & 2) {
      _mm_storel_pi(reinterpret_cast<__m64*>(p), part);
      part = _mm_movehl_ps(part, part);
      p += 2;
    }
    if (n & 1) _mm_store_ss(p, part);
  }
  // n (at most 8) 16-bit units, zero-extended to 32 bits.
  static __m256i load_u16(const uint16_t* p, int n) {
    if (n >= 8) return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    alignas(16) uint16_t part[8] = {};
    for (int i = 0; i < n; ++i) part[i] = p[i];
    return _mm256_cvtepu16_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(part)));
  }
  static F load_bf16(const uint16_t* p, int n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(load_u16(p, n), 16));
  }
  // Round to nearest even; NaN stays NaN.
  static void store_bf16(uint16_t* p, F x, int n) {
    const __m256i u = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i r = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    r = _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(r), set(__builtin_nanf("")), nan));
    r = _mm256_srli_epi32(r, 16);
    const __m128i packed =
        _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
    if (n >= 8) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
      return;
    }
    alignas(16) uint16_t part[8];
    _mm_store_si128(reinterpret_cast<__m128i*>(part), packed);
    for (int i = 0; i < n; ++i) p[i] = part[i];
  }

  // r[i] lane j <-> r[j] lane i.
  static inline __attribute__((always_inline)) void transpose(F r[8]) {
    F t[8];
    for (int i = 0; i < 4; ++i) {
      t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
      t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    for (int h = 0; h < 2; ++h) {
      const F a = t[4 * h], b = t[4 * h + 1], c = t[4 * h + 2], d = t[4 * h + 3];
      r[4 * h] = _mm256_shuffle_ps(a, c, 0x44);
      r[4 * h + 1] = _mm256_shuffle_ps(a, c, 0xee);
      r[4 * h + 2] = _mm256_shuffle_ps(b, d, 0x44);
      r[4 * h + 3] = _mm256_shuffle_ps(b, d, 0xee);
    }
    for (int i = 0; i < 4; ++i) {
      const F a = r[i], b = r[i + 4];
      r[i] = _mm256_permute2f128_ps(a, b, 0x20);
      r[i + 4] = _mm256_permute2f128_ps(a, b, 0x31);
    }
  }
};

}  // namespace
}  // namespace lacuna::cpu
