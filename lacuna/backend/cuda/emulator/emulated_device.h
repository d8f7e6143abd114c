// SPDX-License-Identifier: Apache-2.0
// A Device whose memory is the host's and whose kernels run on the emulator.
#pragma once

#include <memory>
#include <vector>

#include "lacuna/backend/cuda/device.h"

namespace lacuna::cuda::emulator {

// A copy between host and device; beside = one that may overlap with kernels.
struct Transfer {
  enum Kind : uint8_t { in, out, beside } kind;
  const void* host;
  size_t bytes;
};
using Transfers = std::vector<Transfer>;

// Throws Error from launch() with what a kernel did wrong. `seed` changes with every launch. With a
// library, gemm() runs plain loops; without, it refuses. Every copy is noted in `transfers`, if
// given, which must outlive the device.
std::unique_ptr<Device> make_emulated_device(Family family, uint64_t seed, bool library = true,
                                             Transfers* transfers = nullptr);

}  // namespace lacuna::cuda::emulator
