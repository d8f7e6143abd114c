// SPDX-License-Identifier: Apache-2.0
// Attention on a device: checks, operands, launches.
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
// strides of multiples of 8 elements; the generic kernel takes what they refuse. The mask, offsets
// and skip parameters lie in host memory; block_mass, skip_bits and pv_pairs in either. Waits only
// for what a skip rule or block mass sends to host memory. `scratch`: bytes that key tiles and what
// the kernel leaves behind may take, for as many heads at a time as that is room for, at least one.
inline constexpr size_t kAttendScratch = size_t{1} << 30;
void attend_resident(Device& device, const AttendParams& params, size_t scratch = kAttendScratch);

}  // namespace lacuna::cuda
