// SPDX-License-Identifier: Apache-2.0
// Selection operations of the CPU backend as plain functions; the contract of each is Backend's in
// backend.h. Results do not depend on the thread count.
#pragma once

#include "lacuna/backend/backend.h"
#include "lacuna/backend/cpu/isa.h"
#include "lacuna/backend/cpu/onednn.h"

namespace lacuna::cpu {

void merge_lse(const TensorView& out_a, float* lse_a, const TensorView& out_b, const float* lse_b);
void block_mean(const TensorView& x, std::span<const int32_t> head_ids, const BlockLayout& layout,
                const TensorView& out);
// As a matrix product over groups of `stride` tokens, softmax and block sums chunk by chunk.
// Scratch: packed keys, 64 MiB of them or one head's, a copy of one head's keys, and for each
// thread that has work 16 MiB of logits (or those of one query block) with their query groups.
void antidiagonal_scores(OneDnn& dnn, const TensorView& q, const TensorView& k,
                         std::span<const int32_t> head_ids, const BlockLayout& q_layout,
                         const BlockLayout& k_layout, float sm_scale, int32_t stride, bool compat,
                         const TensorView& out);
// With the score and exponential kernels of attention at level `isa`.
void block_mass(const TensorView& q, const TensorView& k, const float* lse,
                std::span<const int32_t> head_ids, const BlockLayout& q_layout,
                const BlockLayout& k_layout, float sm_scale, Isa isa, const TensorView& out);
// By the score pass of the attention kernels at level `isa`, so at their rate; see
// select_nearest.cc.
void nearest_centroids(OneDnn& dnn, const TensorView& x, std::span<const int32_t> head_ids,
                       const TensorView& centroids, Isa isa, const TensorView& labels);
// Scores must be finite and not negative.
void select_top_p(const TensorView& scores, std::span<const float> top_p, BlockMask& mask);
// Scores must not be NaN.
void select_top_k(const TensorView& scores, std::span<const int32_t> top_k, BlockMask& mask);
void gather_tokens(const TensorView& x, const int32_t* order, int64_t order_head_stride,
                   const TensorView& out);
void scatter_tokens(const TensorView& x, const int32_t* order, int64_t order_head_stride,
                    const TensorView& out);

}  // namespace lacuna::cpu
