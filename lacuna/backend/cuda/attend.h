// SPDX-License-Identifier: Apache-2.0
// Attention on a device: checks, plan, launch, fold.
#pragma once

#include <string>

#include "lacuna/backend/cuda/device.h"

namespace lacuna::cuda {

// Why a call cannot run here, or empty.
std::string attend_unsupported(const AttendParams& params);

// q, k, v, out, bias and lse in host memory, any strides: copied to the device and back. Throws
// Error when unsupported.
void attend(Device& device, const AttendParams& params);

// The same with q, k, v, out, bias and lse in device memory: bases 16-byte aligned, strides
// multiples of 8 elements, else Error. Lists, offsets, skip parameters, block_mass, skip_bits
// and pv_pairs stay in host memory. Returns milliseconds of the kernel on the device.
double attend_resident(Device& device, const AttendParams& params);

}  // namespace lacuna::cuda
