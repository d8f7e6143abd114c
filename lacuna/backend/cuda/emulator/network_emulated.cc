// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cuda/emulator/kernels.h"
#include "lacuna/backend/cuda/network_kernels.h"

namespace lacuna::cuda::emulator {

std::span<const Kernel> network_kernels() {
  static constexpr Kernel kKernels[] = {LACUNA_NETWORK_KERNELS(LACUNA_EMULATED_KERNEL)};
  return kKernels;
}

}  // namespace lacuna::cuda::emulator
