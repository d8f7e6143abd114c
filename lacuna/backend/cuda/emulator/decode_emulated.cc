// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cuda/decode_kernels.h"
#include "lacuna/backend/cuda/emulator/kernels.h"

namespace lacuna::cuda::emulator {

std::span<const Kernel> decode_kernels() {
  static constexpr Kernel kKernels[] = {LACUNA_DECODE_KERNELS(LACUNA_EMULATED_KERNEL)};
  return kKernels;
}

}  // namespace lacuna::cuda::emulator
