// SPDX-License-Identifier: Apache-2.0
// A Device whose memory is the host's and whose kernels run on the emulator.
#pragma once

#include <memory>

#include "lacuna/backend/cuda/device.h"

namespace lacuna::cuda::emulator {

// Throws Error from launch() with what a kernel did wrong. `seed` changes with every launch. With a
// library, gemm() runs plain loops; without, it refuses.
std::unique_ptr<Device> make_emulated_device(Family family, uint64_t seed, bool library = true);

}  // namespace lacuna::cuda::emulator
