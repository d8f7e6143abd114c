// SPDX-License-Identifier: Apache-2.0
// AVX512-BF16: products of bf16 pairs with f32 sums. Included by kernel files only.
#pragma once

#include "lacuna/backend/cpu/kernel_vec_avx512.h"

namespace lacuna::cpu {
namespace {

struct VecAvx512Bf16 : VecAvx512 {
  static constexpr bool kPairs = true;
  static F dot(F a, F b, F c) {
    return _mm512_dpbf16_ps(c, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
  // Degree 4, relative error 2.6e-6: P is rounded to 8 bits anyway.
  static F exp2_p(F x) {
    const F r = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const F f = _mm512_sub_ps(x, r);
    F p = set(9.57010191e-3f);
    p = fma(p, f, set(5.59178603e-2f));
    p = fma(p, f, set(2.40247448e-1f));
    p = fma(p, f, set(6.93121815e-1f));
    p = fma(p, f, set(9.99999261e-1f));
    return _mm512_scalef_ps(p, r);
  }
  // Low half of each lane: even key, rounded to nearest even by hardware; high half: odd key.
  static void store_probability(float* p, F even, F odd) {
    const __m512i both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd, even));
    const __m512i order =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                         21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    _mm512_store_si512(p, _mm512_permutexvar_epi16(order, both));
  }
  // n channels of two rows, one pair a lane; a null second row is zero.
  static F interleave_bf16(const uint16_t* even, const uint16_t* odd, int n) {
    __m512i x = load_u16(even, n);
    if (odd != nullptr) x = _mm512_or_si512(x, _mm512_slli_epi32(load_u16(odd, n), 16));
    return _mm512_castsi512_ps(x);
  }
};

}  // namespace
}  // namespace lacuna::cpu
