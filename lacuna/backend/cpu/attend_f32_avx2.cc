// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cpu/kernel_tile.h"
#include "lacuna/backend/cpu/kernel_vec_avx2.h"

namespace lacuna::cpu {
namespace {

struct Vec : VecAvx2 {
  static constexpr bool kPairs = false;
  static F dot(F a, F b, F c) { return fma(a, b, c); }
  static F exp2_p(F x) { return exp2(x); }
};

}  // namespace

constinit const KernelOps kAttendF32Avx2 = TileKernel<Vec>::ops("f32 avx2");

}  // namespace lacuna::cpu
