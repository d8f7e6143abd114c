// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cuda/inst/entry.cuh"
#include "lacuna/backend/cuda/network_kernels.h"

namespace lacuna::cuda::entry {
LACUNA_NETWORK_KERNELS(LACUNA_ENTRY)
}  // namespace lacuna::cuda::entry
