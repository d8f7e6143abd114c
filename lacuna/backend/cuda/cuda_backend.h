// SPDX-License-Identifier: Apache-2.0
// The CUDA backend. So far: attention and selection; every other op throws, naming itself.
#pragma once

#include <memory>

#include "lacuna/backend/backend.h"
#include "lacuna/backend/cuda/device.h"

namespace lacuna {

// On the GPU of this machine. Throws Error saying why there is none.
std::unique_ptr<Backend> make_cuda_backend();
// On a given device, for tests.
std::unique_ptr<Backend> make_cuda_backend(std::unique_ptr<cuda::Device> device);

}  // namespace lacuna
