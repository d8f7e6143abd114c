// SPDX-License-Identifier: Apache-2.0
// Host side of CPU attention: picks a kernel for (isa, dtype, head_dim) and splits the work.
#pragma once

#include <string>

#include "lacuna/backend/attend_params.h"
#include "lacuna/backend/cpu/isa.h"

namespace lacuna::cpu {

struct KernelOps;

// Why this call cannot run, or empty.
std::string attend_unsupported(const AttendParams& params);
// See Backend::attend. Throws Error with attend_unsupported()'s text.
void attend(const AttendParams& params, Isa isa);
// The arithmetic for rows of this type on this level.
const KernelOps& attend_kernel(AttendDType dtype, int32_t head_dim, Isa isa);
// Kernel that would run: "f32 avx512", "bf16 amx", "bf16 via f32 avx2", "generic".
std::string attend_kernel_name(const AttendParams& params, Isa isa);

}  // namespace lacuna::cpu
