// SPDX-License-Identifier: Apache-2.0
// bf16 attention on vdpbf16ps: products of bf16 pairs, f32 sums. P is rounded to bf16 for P V; the
// row sums are taken before rounding. vdpbf16ps takes denormal inputs as zero.
#include "lacuna/backend/cpu/kernel_tile.h"
#include "lacuna/backend/cpu/kernel_vec_avx512bf16.h"

namespace lacuna::cpu {

constinit const KernelOps kAttendBf16Avx512Bf16 =
    TileKernel<VecAvx512Bf16>::ops("bf16 avx512_bf16");

}  // namespace lacuna::cpu
