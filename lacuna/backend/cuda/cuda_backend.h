// SPDX-License-Identifier: Apache-2.0
// The CUDA backend. So far: attention and selection; every other op throws, naming itself.
#pragma once

#include <memory>
#include <optional>

#include "lacuna/backend/backend.h"
#include "lacuna/backend/cuda/device.h"

namespace lacuna {

// On the GPU of this machine. Throws Error saying why there is none.
std::unique_ptr<Backend> make_cuda_backend();
// On a given device. Constant weights are kept in at most `weight_budget` bytes of its memory;
// default: 85 % of what is free now.
std::unique_ptr<Backend> make_cuda_backend(std::unique_ptr<cuda::Device> device,
                                           std::optional<size_t> weight_budget = std::nullopt);

}  // namespace lacuna
