// SPDX-License-Identifier: Apache-2.0
// The reference operations as plain functions; the contract of each is Backend's in backend.h.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "lacuna/backend/backend.h"

namespace lacuna::ref {

std::string attend_unsupported(const AttendParams& p);
void attend(const AttendParams& p);
void merge_lse(const TensorView& out_a, float* lse_a, const TensorView& out_b, const float* lse_b);

void block_mean(const TensorView& x, std::span<const int32_t> head_ids, const BlockLayout& layout,
                const TensorView& out);
void antidiagonal_scores(const TensorView& q, const TensorView& k,
                         std::span<const int32_t> head_ids, const BlockLayout& q_layout,
                         const BlockLayout& k_layout, float sm_scale, int32_t stride, bool compat,
                         const TensorView& out);
void block_mass(const TensorView& q, const TensorView& k, const float* lse,
                std::span<const int32_t> head_ids, const BlockLayout& q_layout,
                const BlockLayout& k_layout, float sm_scale, const TensorView& out);
void nearest_centroids(const TensorView& x, std::span<const int32_t> head_ids,
                       const TensorView& centroids, const TensorView& labels);
void select_top_p(const TensorView& scores, std::span<const float> top_p, BlockMask& mask);
void select_top_k(const TensorView& scores, std::span<const int32_t> top_k, BlockMask& mask);
void gather_tokens(const TensorView& x, const int32_t* order, int64_t order_head_stride,
                   const TensorView& out);
void scatter_tokens(const TensorView& x, const int32_t* order, int64_t order_head_stride,
                    const TensorView& out);

void linear(const TensorView& x, const TensorView& w, const float* bias, Epilogue epilogue,
            const float* gate, const TensorView& out);
void layer_norm(const TensorView& x, const float* weight, const float* bias, const float* scale,
                const float* shift, float eps, const TensorView& out);
void rms_norm(const TensorView& x, const float* weight, float eps, NormSpan span,
              const RopeTables* rope, int32_t num_heads, const TensorView& out);
void gated_product(Epilogue activation, const TensorView& gate, const TensorView& up,
                   const TensorView& out);
void conv3d(const TensorView& x, const TensorView& w, const float* bias, const ConvParams& conv,
            const TensorView* residual, const TensorView& out);
void channel_norm(const TensorView& x, const float* gamma, bool silu, const TensorView& out);
void group_norm(const TensorView& x, int32_t num_groups, const float* weight, const float* bias,
                float eps, bool silu, const TensorView& out);

}  // namespace lacuna::ref
