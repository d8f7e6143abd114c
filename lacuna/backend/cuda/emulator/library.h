// SPDX-License-Identifier: Apache-2.0
// In the place of a library of matrix products: plain loops, as picky as the real one.
#pragma once

#include "lacuna/backend/cuda/network_args.h"

namespace lacuna::cuda::emulator {

// Device::gemm. Throws Error for what no caller may ask; false for shapes that cuBLASLt would
// refuse (rows that are not multiples of 16 bytes).
bool library_gemm(const Gemm& g);

}  // namespace lacuna::cuda::emulator
