// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cuda/decode_kernels.h"
#include "lacuna/backend/cuda/inst/entry.cuh"

namespace lacuna::cuda::entry {
LACUNA_DECODE_KERNELS(LACUNA_ENTRY)
}  // namespace lacuna::cuda::entry
