// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cuda/attend_any_kernels.h"
#include "lacuna/backend/cuda/inst/entry.cuh"

namespace lacuna::cuda::entry {
LACUNA_ATTEND_ANY_KERNELS(LACUNA_ENTRY)
}
