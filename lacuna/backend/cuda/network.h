// SPDX-License-Identifier: Apache-2.0
// Network ops of backend.h on a device. Tensors lie in host or device memory, vectors and rotary
// tables on the host. Throw Error like the other backends.
#pragma once

#include "lacuna/backend/backend.h"
#include "lacuna/backend/cuda/device.h"
#include "lacuna/backend/cuda/resident.h"

namespace lacuna::cuda {

void linear(Device& device, Resident& weights, const TensorView& x, const TensorView& w,
            const float* bias, Epilogue epilogue, const float* gate, const TensorView& out);
void layer_norm(Device& device, const TensorView& x, const float* weight, const float* bias,
                const float* scale, const float* shift, float eps, const TensorView& out);
void rms_norm(Device& device, const TensorView& x, const float* weight, float eps, NormSpan span,
              const RopeTables* rope, int32_t num_heads, const TensorView& out);
void gated_product(Device& device, Epilogue activation, const TensorView& gate,
                   const TensorView& up, const TensorView& out);
// out = a + b; any strides, 0 in a and b repeats.
void add(Device& device, const TensorView& a, const TensorView& b, const TensorView& out);
// Patches of the input take `patch_bytes` of device memory at a time.
inline constexpr int64_t kPatchBytes = int64_t{64} << 20;
void conv3d(Device& device, Resident& weights, const TensorView& x, const TensorView& w,
            const float* bias, const ConvParams& conv, const TensorView* residual,
            const TensorView& out, int64_t patch_bytes = kPatchBytes);
void channel_norm(Device& device, const TensorView& x, const float* gamma, bool silu,
                  const TensorView& out);
// Sums of a sample are kept for about `most_chunks` chunks of its rows.
inline constexpr int64_t kGroupMostChunks = 2048;
void group_norm(Device& device, const TensorView& x, int32_t num_groups, const float* weight,
                const float* bias, float eps, bool silu, const TensorView& out,
                int64_t most_chunks = kGroupMostChunks);

}  // namespace lacuna::cuda
