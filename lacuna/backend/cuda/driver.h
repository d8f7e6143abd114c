// SPDX-License-Identifier: Apache-2.0
// A GPU through the CUDA driver, which is opened at run time: a build with CUDA starts anywhere.
#pragma once

#include <memory>

#include "lacuna/backend/cuda/device.h"

namespace lacuna::cuda {

// Device 0 (CUDA_VISIBLE_DEVICES chooses). Throws Error saying why there is none: built without
// kernels (absent.cc), no driver, no device, one that no kernel was compiled for.
std::unique_ptr<Device> make_driver_device();

}  // namespace lacuna::cuda
