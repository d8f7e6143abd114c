// SPDX-License-Identifier: Apache-2.0
// Measured arithmetic peaks of one core, in GFLOP/s.
#pragma once

#include "lacuna/backend/cpu/isa.h"

namespace lacuna::bench {

struct CpuPeak {
  double fma_ymm = 0;
  double fma_zmm = 0;   // 0 where the machine lacks AVX-512
  double bf16_zmm = 0;  // vdpbf16ps; 0 where the machine lacks AVX512_BF16
};

// Best of a few short loops of independent instructions on the calling thread; about 0.1 s.
CpuPeak measure_cpu_peak(cpu::Isa machine);

}  // namespace lacuna::bench
