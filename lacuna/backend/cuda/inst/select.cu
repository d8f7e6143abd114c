// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cuda/inst/entry.cuh"
#include "lacuna/backend/cuda/select_kernels.h"

namespace lacuna::cuda::entry {
LACUNA_SELECT_KERNELS(LACUNA_ENTRY)
}
