// SPDX-License-Identifier: Apache-2.0
// Selection ops on a device; the contract of each is Backend's in backend.h.
#pragma once

#include <span>

#include "lacuna/backend/cuda/device.h"
#include "lacuna/core/block_mask.h"
#include "lacuna/core/tensor.h"

namespace lacuna::cuda {

void block_mean(Device& device, const TensorView& x, std::span<const int32_t> head_ids,
                const BlockLayout& layout, const TensorView& out);

}  // namespace lacuna::cuda
