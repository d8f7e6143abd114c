// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cuda/emulator/kernels.h"
#include "lacuna/backend/cuda/plan_kernels.h"

namespace lacuna::cuda::emulator {

std::span<const Kernel> plan_kernels() {
  static constexpr Kernel kKernels[] = {LACUNA_PLAN_KERNELS(LACUNA_EMULATED_KERNEL)};
  return kKernels;
}

}  // namespace lacuna::cuda::emulator
