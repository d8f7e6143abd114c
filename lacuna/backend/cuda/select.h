// SPDX-License-Identifier: Apache-2.0
// Selection ops on a device; the contract of each is Backend's in backend.h.
#pragma once

#include <span>

#include "lacuna/backend/cuda/device.h"
#include "lacuna/core/block_mask.h"
#include "lacuna/core/tensor.h"

namespace lacuna::cuda {

// select.cc: scores of blocks and tokens
void block_mean(Device& device, const TensorView& x, std::span<const int32_t> head_ids,
                const BlockLayout& layout, const TensorView& out);
void antidiagonal_scores(Device& device, const TensorView& q, const TensorView& k,
                         std::span<const int32_t> head_ids, const BlockLayout& q_layout,
                         const BlockLayout& k_layout, float sm_scale, int32_t stride, bool compat,
                         const TensorView& out);
void block_mass(Device& device, const TensorView& q, const TensorView& k, const float* lse,
                std::span<const int32_t> head_ids, const BlockLayout& q_layout,
                const BlockLayout& k_layout, float sm_scale, const TensorView& out);
void nearest_centroids(Device& device, const TensorView& x, std::span<const int32_t> head_ids,
                       const TensorView& centroids, const TensorView& labels);

// tokens.cc: masks of scores; rows of tokens
void select_top_p(Device& device, const TensorView& scores, std::span<const float> top_p,
                  BlockMask& mask);
void select_top_k(Device& device, const TensorView& scores, std::span<const int32_t> top_k,
                  BlockMask& mask);
void gather_tokens(Device& device, const TensorView& x, const int32_t* order,
                   int64_t order_head_stride, const TensorView& out);
void scatter_tokens(Device& device, const TensorView& x, const int32_t* order,
                    int64_t order_head_stride, const TensorView& out);
void merge_lse(Device& device, const TensorView& out_a, float* lse_a, const TensorView& out_b,
               const float* lse_b);

}  // namespace lacuna::cuda
