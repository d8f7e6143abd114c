// SPDX-License-Identifier: Apache-2.0
// The AMX kernel on a software tile unit: lets its source be tested where AMX is missing.
#define LACUNA_AMX_EMULATION
#include "lacuna/backend/cpu/kernel_amx.h"

namespace lacuna::cpu {

constinit const KernelOps kAttendBf16AmxEmulated = AmxKernel::ops("bf16 amx (emulated)");

}  // namespace lacuna::cpu
