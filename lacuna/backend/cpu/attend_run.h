// SPDX-License-Identifier: Apache-2.0
// The attention driver: packs K and V once per head, splits query tiles into tasks and walks each
// tile through its pieces with one instruction set's kernel.
#pragma once

#include "lacuna/backend/attend_params.h"
#include "lacuna/backend/cpu/kernel_ops.h"

namespace lacuna::cpu {

// params must be valid (attend_unsupported); results do not depend on the number of threads.
// Scratch memory is kept by the calling and the worker threads and reused by later calls.
void run_attend(const AttendParams& params, const KernelOps& ops);

}  // namespace lacuna::cpu
