// SPDX-License-Identifier: Apache-2.0
// Network operations of the CPU backend as plain functions; the contract of each is Backend's in
// backend.h. Every task covers a part of the output that does not depend on the thread count, so
// results are bitwise equal for any number of threads.
#pragma once

#include "lacuna/backend/backend.h"
#include "lacuna/backend/cpu/onednn.h"

namespace lacuna::cpu {

// Matrix products by oneDNN at close to the machine's peak. Below Isa::avx512_bf16, bf16 operands
// are widened to f32 (exact) and the result is rounded once.
void linear(OneDnn& dnn, const TensorView& x, const TensorView& w, const float* bias,
            Epilogue epilogue, const float* gate, const TensorView& out);
// linear() without its checks, and with a residual of any type; for operations built on it.
void gemm(OneDnn& dnn, const TensorView& x, const TensorView& w, const float* bias,
          Epilogue epilogue, const float* gate, const TensorView& out);
void conv3d(OneDnn& dnn, const TensorView& x, const TensorView& w, const float* bias,
            const ConvParams& conv, const TensorView* residual, const TensorView& out);

void layer_norm(const TensorView& x, const float* weight, const float* bias, const float* scale,
                const float* shift, float eps, const TensorView& out);
void rms_norm(const TensorView& x, const float* weight, float eps, NormSpan span,
              const RopeTables* rope, int32_t num_heads, const TensorView& out);
void gated_product(Epilogue activation, const TensorView& gate, const TensorView& up,
                   const TensorView& out);
void channel_norm(const TensorView& x, const float* gamma, bool silu, const TensorView& out);
void group_norm(const TensorView& x, int32_t num_groups, const float* weight, const float* bias,
                float eps, bool silu, const TensorView& out);

}  // namespace lacuna::cpu
