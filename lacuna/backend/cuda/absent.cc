// SPDX-License-Identifier: Apache-2.0
// In place of driver.cc in builds without nvcc.
#include "lacuna/backend/cuda/driver.h"
#include "lacuna/core/error.h"

namespace lacuna::cuda {

std::unique_ptr<Device> make_driver_device() {
  fail("cuda: this build has no CUDA kernels, expected one configured with nvcc (LACUNA_CUDA=ON)");
}

}  // namespace lacuna::cuda
