// SPDX-License-Identifier: Apache-2.0
// Sixteen f32 lanes of AVX-512 (F, BW, DQ, VL). Included by kernel files only.
#pragma once

#include <immintrin.h>
#include <stdint.h>

// g++ 12 warns about the deliberately undefined operands inside its own AVX-512 header.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace lacuna::cpu {
namespace {

struct VecAvx512 {
  using F = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kPanel =
      12;  // 12 x 2 accumulators: 32 rows of Q or P fit L1 at head_dim 128
  static constexpr int kVectors = 2;

  static F zero() { return _mm512_setzero_ps(); }
  static F set(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_load_ps(p); }
  static void store(float* p, F x) { _mm512_store_ps(p, x); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }

  // x where x > m + slack, else m.
  static F raise(F m, F x, F slack) {
    return _mm512_mask_mov_ps(m, _mm512_cmp_ps_mask(x, add(m, slack), _CMP_GT_OQ), x);
  }
  // x where x is not -inf, else 0: keeps (-inf) - (-inf) out of the exponent.
  static F finite_or_zero(F x) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, set(-__builtin_inff()), _CMP_NEQ_UQ), x);
  }
  // 1 / x, 0 where x = 0.
  static F inverse_or_zero(F x) {
    return _mm512_maskz_div_ps(_mm512_cmp_ps_mask(x, zero(), _CMP_NEQ_UQ), set(1.0f), x);
  }

  // 2^x, relative error 1e-7; 0 for -inf (scalef of anything by -inf is 0); NaN stays NaN.
  static F exp2(F x) {
    const F r = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const F f = _mm512_sub_ps(x, r);
    F p = set(1.3276472e-3f);
    p = fma(p, f, set(9.67554133e-3f));
    p = fma(p, f, set(5.55071327e-2f));
    p = fma(p, f, set(2.40221197e-1f));
    p = fma(p, f, set(6.93146967e-1f));
    p = fma(p, f, set(1.0f));
    return _mm512_scalef_ps(p, r);
  }

  static __mmask16 mask(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
  // The first n lanes, n at most 16; the rest load as zero and are not stored.
  static F load_n(const float* p, int n) {
    return n >= 16 ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps(mask(n), p);
  }
  static void store_n(float* p, F x, int n) {
    if (n >= 16) return _mm512_storeu_ps(p, x);
    _mm512_mask_storeu_ps(p, mask(n), x);
  }
  // n (at most 16) 16-bit units, zero-extended to 32 bits.
  static __m512i load_u16(const uint16_t* p, int n) {
    return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask(n), p));
  }
  static F load_bf16(const uint16_t* p, int n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(load_u16(p, n), 16));
  }
  // Round to nearest even; NaN stays NaN.
  static void store_bf16(uint16_t* p, F x, int n) {
    const __m512i u = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i r = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    r = _mm512_mask_mov_epi32(r, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q),
                              _mm512_set1_epi32(0x7fc00000));
    _mm256_mask_storeu_epi16(p, mask(n), _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16)));
  }

  // r[i] lane j <-> r[j] lane i.
  static inline __attribute__((always_inline)) void transpose(F f[16]) {
    __m512i r[16], t[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) r[i] = _mm512_castps_si512(f[i]);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
      t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
      r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
      r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
      r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
      t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
      t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
      t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      f[i] = _mm512_castsi512_ps(_mm512_shuffle_i32x4(t[i], t[i + 8], 0x88));
      f[i + 8] = _mm512_castsi512_ps(_mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd));
      f[i + 4] = _mm512_castsi512_ps(_mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88));
      f[i + 12] = _mm512_castsi512_ps(_mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd));
    }
  }
};

}  // namespace
}  // namespace lacuna::cpu
