// SPDX-License-Identifier: Apache-2.0
// Measured arithmetic peaks of one core, in GFLOP/s.
#pragma once

#include <cstdint>
#include <string>

#include "lacuna/backend/cpu/isa.h"

namespace lacuna::bench {

enum class PeakUnit : uint8_t {
  fma_ymm,
  fma_zmm,
  bf16_zmm,  // vdpbf16ps
  amx_bf16,  // tdpbf16ps on random operands from L1: with zeros the same loop is a fifth faster
};

inline constexpr PeakUnit kPeakUnits[] = {PeakUnit::fma_ymm, PeakUnit::fma_zmm, PeakUnit::bf16_zmm,
                                          PeakUnit::amx_bf16};

// Best of a few short loops of independent instructions on the calling thread, about 10 ms. The
// machine must have the unit (cpu::machine_isa() asks for the permission that AMX needs).
double measure_peak(PeakUnit unit);
const char* peak_name(PeakUnit unit);
// "fma_ymm_gflops"
const char* peak_key(PeakUnit unit);

struct CpuPeak {
  double fma_ymm = 0;
  double fma_zmm = 0;   // 0 where the machine lacks AVX-512
  double bf16_zmm = 0;  // 0 where the machine lacks AVX512_BF16
  double amx_bf16 = 0;  // 0 where the machine lacks AMX

  double of(PeakUnit unit) const;
  // "FMA ymm 118.2, FMA zmm 118.2": what the machine has.
  std::string text() const;
};

CpuPeak measure_cpu_peak(cpu::Isa machine);

}  // namespace lacuna::bench
