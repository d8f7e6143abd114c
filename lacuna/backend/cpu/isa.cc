// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cpu/isa.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <string>

#include "lacuna/core/error.h"

namespace lacuna::cpu {
namespace {

constexpr std::array<std::string_view, 4> kNames = {"avx2", "avx512", "avx512_bf16", "amx"};

struct CpuidLeaf {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

CpuidLeaf cpuid(uint32_t leaf, uint32_t subleaf) {
  CpuidLeaf r;
  if (__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx) == 0) return {};
  return r;
}

bool has(uint32_t word, std::initializer_list<int> bits) {
  for (int bit : bits)
    if (((word >> bit) & 1u) == 0) return false;
  return true;
}

// Register state that the operating system saves: bit 1 SSE, 2 AVX, 5..7 AVX-512, 17..18 AMX tiles.
uint64_t read_xcr0() {
  uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t{high} << 32) | low;
}

// Linux hands out the 8 KiB of tile state per process, on request.
bool request_tile_permission() {
  constexpr long kArchReqXcompPerm = 0x1023;
  constexpr long kXfeatureXtileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureXtileData) == 0;
}

Isa detect() {
  const CpuidLeaf one = cpuid(1, 0);
  const CpuidLeaf seven = cpuid(7, 0);
  const CpuidLeaf seven_one = cpuid(7, 1);
  const bool osxsave = has(one.ecx, {27});
  const uint64_t xcr0 = osxsave ? read_xcr0() : 0;
  const bool avx2 = (xcr0 & 0x6) == 0x6 && has(one.ecx, {12, 28, 29}) && has(seven.ebx, {5});
  LACUNA_CHECK(avx2, "cpu: this processor lacks AVX2, FMA or F16C, expected all three");
  // F, DQ, BW, VL.
  if ((xcr0 & 0xe6) != 0xe6 || !has(seven.ebx, {16, 17, 30, 31})) return Isa::avx2;
  if (!has(seven_one.eax, {5})) return Isa::avx512;
  const bool tiles = (xcr0 & 0x60000) == 0x60000 && has(seven.edx, {22, 24});
  if (!tiles || !request_tile_permission()) return Isa::avx512_bf16;
  return Isa::amx;
}

Isa detect_active() {
  const Isa machine = machine_isa();
  if (!isa_is_forced()) return machine;
  const char* wanted = std::getenv("LACUNA_ISA");
  for (size_t i = 0; i < kNames.size(); ++i) {
    if (kNames[i] != wanted) continue;
    LACUNA_CHECK(i <= static_cast<size_t>(machine), "LACUNA_ISA: {}, this machine has at most {}",
                 wanted, isa_name(machine));
    return static_cast<Isa>(i);
  }
  fail("LACUNA_ISA: {}, expected avx2, avx512, avx512_bf16 or amx", wanted);
}

// "AMD EPYC 9B14 96-Core Processor": three leaves of 16 characters, padded with zeros or blanks.
std::string processor_name() {
  std::string name;
  for (uint32_t leaf = 0x80000002; leaf <= 0x80000004; ++leaf) {
    const CpuidLeaf part = cpuid(leaf, 0);
    for (const uint32_t word : {part.eax, part.ebx, part.ecx, part.edx})
      for (int byte = 0; byte < 4; ++byte) {
        const char c = static_cast<char>(word >> (8 * byte) & 0x7f);
        if (c >= ' ' && (c != ' ' || !name.empty())) name += c;
      }
  }
  name.erase(name.find_last_not_of(' ') + 1);
  return name;
}

}  // namespace

Isa machine_isa() {
  static const Isa isa = detect();
  return isa;
}

Isa active_isa() {
  static const Isa isa = detect_active();
  return isa;
}

bool isa_is_forced() {
  const char* wanted = std::getenv("LACUNA_ISA");
  return wanted != nullptr && *wanted != '\0';
}

std::string_view isa_name(Isa isa) {
  return kNames[static_cast<size_t>(isa)];
}

std::string machine_identity() {
  const CpuidLeaf one = cpuid(1, 0), seven = cpuid(7, 0), seven_one = cpuid(7, 1);
  return fmt::format("{}, {:08x} {:08x} {:08x} {:08x} {:08x} {:08x} {:08x}, {}", processor_name(),
                     one.eax, one.ecx, one.edx, seven.ebx, seven.ecx, seven.edx, seven_one.eax,
                     isa_name(machine_isa()));
}

}  // namespace lacuna::cpu
