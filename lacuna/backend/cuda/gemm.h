// SPDX-License-Identifier: Apache-2.0
// Matrix products on a device: by its library where that can do them, else by our own kernels.
#pragma once

#include "lacuna/backend/cuda/device.h"

namespace lacuna::cuda {

// Any Gemm; bias f32. A bf16 result with a bias takes it rounded to bf16 where the library adds it.
// Products in f32 that wait for a kernel of ours to finish them take `part_bytes` at a time.
inline constexpr int64_t kGemmPartBytes = int64_t{256} << 20;
void gemm(Device& device, const Gemm& g, int64_t part_bytes = kGemmPartBytes);

// The same by our own kernels alone.
void own_gemm(Device& device, const Gemm& g);

}  // namespace lacuna::cuda
