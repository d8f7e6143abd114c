// SPDX-License-Identifier: Apache-2.0
// Host side of CPU attention: picks a kernel for (isa, dtype, head_dim) and splits the work.
#pragma once

#include <string>

#include "lacuna/backend/attend_params.h"
#include "lacuna/backend/cpu/isa.h"
#include "lacuna/backend/cpu/kernel_ops.h"

namespace lacuna::cpu {

// Why this call cannot run, or empty.
std::string attend_unsupported(const AttendParams& params);
// See Backend::attend. Throws Error with attend_unsupported()'s text.
void attend(const AttendParams& params, Isa isa);
// The kernel for this dtype and head_dim.
const KernelOps& attend_kernel(const AttendParams& params, Isa isa);
// Its name: "f32 avx512", "bf16 amx", "bf16 via f32 avx2", "generic".
std::string attend_kernel_name(const AttendParams& params, Isa isa);

}  // namespace lacuna::cpu
