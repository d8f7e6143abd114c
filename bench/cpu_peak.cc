// SPDX-License-Identifier: Apache-2.0
#include "bench/cpu_peak.h"

#include <fmt/core.h>

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

constexpr int kTiles = 8;  // of each operand in L1: 2 x 8 KiB
constexpr int kTileProductsPerRound = 4 * kTiles / 2;
constexpr int64_t kTileRounds = kRounds / 64;

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

struct alignas(64) TileOperands {
  uint16_t a[kTiles][512], b[kTiles][512];  // bf16

  TileOperands() {
    uint64_t state = 1;
    for (uint16_t* x = &a[0][0]; x != &b[0][0] + kTiles * 512; ++x) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      // Sign and fraction at random, size 1/2 to 2: what a dot product of activations sees.
      *x = static_cast<uint16_t>((state >> 48 & 0x807f) | ((126 + (state >> 40 & 1)) << 7));
    }
  }
};

// 2 x 2 tiles of C stay in registers; each step loads two tiles of A and two of B for four
// products.
void loop_amx() {
  static const TileOperands operands;
  static const TileConfig config;
  static const int64_t row_stride = 64;
  __asm__ volatile("ldtilecfg %0" ::"m"(config));
  __asm__ volatile("tilezero %%tmm0\n\ttilezero %%tmm1\n\ttilezero %%tmm2\n\ttilezero %%tmm3" ::
                       : "memory");
  for (int64_t round = 0; round < kTileRounds; ++round)
    for (int i = 0; i < kTiles; i += 2)
      __asm__ volatile(
          "tileloadd (%0,%2), %%tmm4\n\ttileloadd 1024(%0,%2), %%tmm5\n\t"
          "tileloadd (%1,%2), %%tmm6\n\ttileloadd 1024(%1,%2), %%tmm7\n\t"
          "tdpbf16ps %%tmm6, %%tmm4, %%tmm0\n\ttdpbf16ps %%tmm7, %%tmm4, %%tmm1\n\t"
          "tdpbf16ps %%tmm6, %%tmm5, %%tmm2\n\ttdpbf16ps %%tmm7, %%tmm5, %%tmm3" ::"r"(
              operands.a[i]),
          "r"(operands.b[i]), "r"(row_stride)
          : "memory");
  __asm__ volatile("tilerelease");
}

struct Loop {
  void (*run)();
  double flops;
};

Loop loop_of(PeakUnit unit) {
  constexpr double kInstructions = double{kRounds} * kChains;
  switch (unit) {
    case PeakUnit::fma_ymm:
      return {loop_ymm, 16 * kInstructions};
    case PeakUnit::fma_zmm:
      return {loop_zmm, 32 * kInstructions};
    case PeakUnit::bf16_zmm:
      return {loop_bf16, 64 * kInstructions};
    case PeakUnit::amx_bf16:
      break;
  }
  return {loop_amx, 2.0 * 16 * 16 * 32 * kTileProductsPerRound * kTileRounds};
}

}  // namespace

double measure_peak(PeakUnit unit) {
  const Loop loop = loop_of(unit);
  double best = 1e30;
  for (int i = 0; i < 8; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    loop.run();
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
    best = std::min(best, spent.count());
  }
  return 1e-9 * loop.flops / best;
}

const char* peak_name(PeakUnit unit) {
  switch (unit) {
    case PeakUnit::fma_ymm:
      return "FMA ymm";
    case PeakUnit::fma_zmm:
      return "FMA zmm";
    case PeakUnit::bf16_zmm:
      return "vdpbf16ps zmm";
    case PeakUnit::amx_bf16:
      break;
  }
  return "AMX bf16";
}

const char* peak_key(PeakUnit unit) {
  switch (unit) {
    case PeakUnit::fma_ymm:
      return "fma_ymm_gflops";
    case PeakUnit::fma_zmm:
      return "fma_zmm_gflops";
    case PeakUnit::bf16_zmm:
      return "bf16_zmm_gflops";
    case PeakUnit::amx_bf16:
      break;
  }
  return "amx_bf16_gflops";
}

double CpuPeak::of(PeakUnit unit) const {
  switch (unit) {
    case PeakUnit::fma_ymm:
      return fma_ymm;
    case PeakUnit::fma_zmm:
      return fma_zmm;
    case PeakUnit::bf16_zmm:
      return bf16_zmm;
    case PeakUnit::amx_bf16:
      break;
  }
  return amx_bf16;
}

std::string CpuPeak::text() const {
  std::string text;
  for (const PeakUnit unit : kPeakUnits)
    if (of(unit) > 0)
      text += fmt::format("{}{} {:.1f}", text.empty() ? "" : ", ", peak_name(unit), of(unit));
  return text;
}

CpuPeak measure_cpu_peak(cpu::Isa machine) {
  CpuPeak peak;
  peak.fma_ymm = measure_peak(PeakUnit::fma_ymm);
  if (machine >= cpu::Isa::avx512) peak.fma_zmm = measure_peak(PeakUnit::fma_zmm);
  if (machine >= cpu::Isa::avx512_bf16) peak.bf16_zmm = measure_peak(PeakUnit::bf16_zmm);
  if (machine >= cpu::Isa::amx) peak.amx_bf16 = measure_peak(PeakUnit::amx_bf16);
  return peak;
}

}  // namespace lacuna::bench
