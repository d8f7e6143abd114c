// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cpu/kernel_tile.h"
#include "lacuna/backend/cpu/kernel_vec_avx512.h"

namespace lacuna::cpu {
namespace {

struct Vec : VecAvx512 {
  static constexpr bool kPairs = false;
  static F dot(F a, F b, F c) { return fma(a, b, c); }
  static F exp2_p(F x) { return exp2(x); }
};

}  // namespace

constinit const KernelOps kAttendF32Avx512 = TileKernel<Vec>::ops("f32 avx512");

}  // namespace lacuna::cpu
