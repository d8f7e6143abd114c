// SPDX-License-Identifier: Apache-2.0
// What only a GPU can tell about its driver.
#include "lacuna/backend/cuda/driver.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "lacuna/backend/cuda/cublaslt.h"
#include "lacuna/core/error.h"

namespace lacuna::test {
namespace {

class CudaDriver : public testing::TestWithParam<const char*> {};

// Others may take memory of the GPU meanwhile, but hardly as much as devices that gave nothing
// back.
TEST_P(CudaDriver, DevicesGiveBackTheirMemory) {
  std::unique_ptr<cuda::Device> device;
  try {
    device = cuda::make_driver_device();
  } catch (const Error& e) {
    GTEST_SKIP() << e.what();
  }
  const size_t free = device->free_memory();
  for (int i = 0; i < 8; ++i) {
    device = cuda::make_driver_device();
    const float x = 1.0f;
    device->release(device->load(&x, sizeof(x)));
  }
  EXPECT_GT(device->free_memory() + 4 * cuda::kMatrixWorkspaceBytes, free);
}

// The name by which scripts/gpu-check chooses.
INSTANTIATE_TEST_SUITE_P(Devices, CudaDriver, testing::Values("gpu"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace lacuna::test
