// SPDX-License-Identifier: Apache-2.0
// Copies between views, as Backend::copy says.
#pragma once

#include "lacuna/backend/cuda/device.h"
#include "lacuna/core/tensor.h"

namespace lacuna::cuda {

// Rank <= 5, any strides (0 in `from` repeats), each side in host or device memory, f32 <-> bf16;
// contiguous, from all that convert() reads. What must be packed or converted on the way between
// them is staged, `piece_bytes` at a time.
inline constexpr int64_t kCopyPieceBytes = int64_t{64} << 20;
void copy(Device& device, const TensorView& from, const TensorView& to,
          int64_t piece_bytes = kCopyPieceBytes);

// Types that kernels turn into f32 and bf16. All others are converted on the host.
bool reads(DType dtype);

// The same view of packed memory elsewhere.
TensorView packed(const TensorView& like, DType dtype, void* data, lacuna::Device where);

}  // namespace lacuna::cuda
