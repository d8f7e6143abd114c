// SPDX-License-Identifier: Apache-2.0
#include "bench/cpu_peak.h"

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace lacuna::bench {
namespace {

constexpr int64_t kRounds = 400'000;
constexpr int kChains = 12;  // latency 4, at most two a cycle: 8 would do

// Assembly, so that the loop needs no ISA flags and no compiler can shorten it. Registers start
// at zero: products of zeros run at the same rate on these units.
#define LACUNA_TWELVE(op, r)                                                                      \
  op " %%" r "12, %%" r "13, %%" r "0\n\t" op " %%" r "12, %%" r "13, %%" r "1\n\t" op " %%" r    \
     "12, %%" r "13, %%" r "2\n\t" op " %%" r "12, %%" r "13, %%" r "3\n\t" op " %%" r "12, %%" r \
     "13, %%" r "4\n\t" op " %%" r "12, %%" r "13, %%" r "5\n\t" op " %%" r "12, %%" r "13, %%" r \
     "6\n\t" op " %%" r "12, %%" r "13, %%" r "7\n\t" op " %%" r "12, %%" r "13, %%" r "8\n\t" op \
     " %%" r "12, %%" r "13, %%" r "9\n\t" op " %%" r "12, %%" r "13, %%" r "10\n\t" op " %%" r   \
     "12, %%" r "13, %%" r "11\n\t"
#define LACUNA_PEAK_LOOP(op, r)                                                               \
  int64_t n = kRounds;                                                                        \
  __asm__ volatile(                                                                           \
      "vzeroall\n\t"                                                                          \
      "1:\n\t" LACUNA_TWELVE(op, r) "dec %0\n\tjnz 1b\n\tvzeroupper"                          \
      : "+r"(n)                                                                               \
      :                                                                                       \
      : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", \
        "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15")

void loop_ymm() {
  LACUNA_PEAK_LOOP("vfmadd231ps", "ymm");
}
void loop_zmm() {
  LACUNA_PEAK_LOOP("vfmadd231ps", "zmm");
}
void loop_bf16() {
  LACUNA_PEAK_LOOP("vdpbf16ps", "zmm");
}

double gflops(void (*loop)(), int flops_per_instruction) {
  double best = 1e30;
  for (int i = 0; i < 8; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    loop();
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
    best = std::min(best, spent.count());
  }
  return 1e-9 * static_cast<double>(kRounds * kChains * flops_per_instruction) / best;
}

}  // namespace

CpuPeak measure_cpu_peak(cpu::Isa machine) {
  CpuPeak peak;
  peak.fma_ymm = gflops(loop_ymm, 16);
  if (machine >= cpu::Isa::avx512) peak.fma_zmm = gflops(loop_zmm, 32);
  if (machine >= cpu::Isa::avx512_bf16) peak.bf16_zmm = gflops(loop_bf16, 64);
  return peak;
}

}  // namespace lacuna::bench
