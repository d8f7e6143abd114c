// SPDX-License-Identifier: Apache-2.0
// The AMX kernel. Written from a prototype measured on Sapphire Rapids; this source itself has run
// on the emulated tile unit only (docs/kernels.md).
#include "lacuna/backend/cpu/kernel_amx.h"

namespace lacuna::cpu {

constinit const KernelOps kAttendBf16Amx = AmxKernel::ops("bf16 amx");

}  // namespace lacuna::cpu
