// SPDX-License-Identifier: Apache-2.0
// Which instruction sets the kernels may use. Levels are ordered: each includes those before it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace lacuna::cpu {

enum class Isa : uint8_t {
  avx2,         // the floor: AVX2 + FMA + F16C
  avx512,       // F, BW, DQ, VL
  avx512_bf16,  // + AVX512_BF16 (Zen 4, Sapphire Rapids, Cooper Lake)
  amx,          // + AMX-TILE, AMX-BF16, with the kernel's permission for tile state
};

// Best level of this machine: CPUID, XCR0 and, for AMX, arch_prctl. Detected once.
Isa machine_isa();
// machine_isa() lowered by LACUNA_ISA=avx2|avx512|avx512_bf16|amx. Throws Error if the variable is
// unknown or asks for more than the machine has.
Isa active_isa();
// Whether LACUNA_ISA is set: then its level is used even where a lower one is faster.
bool isa_is_forced();
std::string_view isa_name(Isa isa);
// The processor's name and everything that machine_isa() is made of, as text: what a measurement of
// this machine's kernels holds for.
std::string machine_identity();

}  // namespace lacuna::cpu
