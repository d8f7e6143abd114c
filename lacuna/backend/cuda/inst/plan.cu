// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cuda/inst/entry.cuh"
#include "lacuna/backend/cuda/plan_kernels.h"

namespace lacuna::cuda::entry {
LACUNA_PLAN_KERNELS(LACUNA_ENTRY)
}
