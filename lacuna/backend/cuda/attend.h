// SPDX-License-Identifier: Apache-2.0
// Attention on a device: checks, plan, launch, fold.
#pragma once

#include <string>

#include "lacuna/backend/cuda/device.h"

namespace lacuna::cuda {

// Why a call cannot run here, or empty.
std::string attend_unsupported(const AttendParams& params);

// q, k, v, out, bias and lse in host memory, any strides, copied to the device and back; or in
// device memory, in place. Throws Error when unsupported.
void attend(Device& device, const AttendParams& params);

// With q, k, v, out, bias and lse in device memory. Tensor cores need 16-byte aligned bases and
// strides of multiples of 8 elements; the generic kernel takes what they refuse. Lists, offsets,
// skip parameters, block_mass, skip_bits and pv_pairs stay in host memory. Returns milliseconds of
// a tensor-core kernel on the device, 0 of the generic one, which is not waited for.
double attend_resident(Device& device, const AttendParams& params);

}  // namespace lacuna::cuda
