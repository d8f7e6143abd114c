// SPDX-License-Identifier: Apache-2.0
// The CUDA backend.
#pragma once

#include <memory>
#include <optional>

#include "lacuna/backend/backend.h"
#include "lacuna/backend/cuda/device.h"

namespace lacuna {

// On the GPU of this machine. Throws Error saying why there is none.
std::unique_ptr<Backend> make_cuda_backend();
// On a given device, of whose memory it holds at most `memory_limit` bytes; default: what it holds
// already and 90 % of what is free.
std::unique_ptr<Backend> make_cuda_backend(std::unique_ptr<cuda::Device> device,
                                           std::optional<size_t> memory_limit = std::nullopt);

}  // namespace lacuna
