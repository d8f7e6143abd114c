// SPDX-License-Identifier: Apache-2.0
// Alone in its file because attention kernels see it (backend/attend_params.h): no standard C++
// headers.
#pragma once

#include <stdint.h>

namespace lacuna {

// In which order the key blocks of a query block are visited.
enum class VisitOrder : uint8_t {
  ascending,
  coarse_to_fine,  // own block first, then bit-reversed strides: skip rules need early good maxima
};

}  // namespace lacuna
