// SPDX-License-Identifier: Apache-2.0
// bf16 attention on vdpbf16ps: products of bf16 pairs, f32 sums. P is rounded to bf16 for P V; the
// row sums are taken before rounding. vdpbf16ps takes denormal inputs as zero.
#include "lacuna/backend/cpu/kernel_tile.h"
#include "lacuna/backend/cpu/kernel_vec_avx512.h"

namespace lacuna::cpu {
namespace {

struct Vec : VecAvx512 {
  static constexpr bool kPairs = true;
  static F dot(F a, F b, F c) {
    return _mm512_dpbf16_ps(c, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
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

constinit const KernelOps kAttendBf16Avx512Bf16 = TileKernel<Vec>::ops("bf16 avx512_bf16");

}  // namespace lacuna::cpu
