// SPDX-License-Identifier: Apache-2.0
// Whether a selection op's call makes sense, whatever runs it; the contract of each is Backend's in
// backend.h. Throw Error. A backend adds what its own kernels ask beyond that.
#pragma once

#include <cmath>
#include <span>

#include "lacuna/backend/tensor_check.h"
#include "lacuna/core/block_mask.h"

namespace lacuna {

inline void check_heads(const char* who, std::span<const int32_t> head_ids, const TensorView& x) {
  for (int32_t h : head_ids)
    LACUNA_CHECK(h >= 0 && h < x.shape[0], "{}: head {} of {}, expected 0 to {}", who, h,
                 x.describe(), x.shape[0] - 1);
}

// The tokens of x in blocks; explicit offsets are by call index.
inline void check_layout(const char* who, const BlockLayout& layout, const TensorView& x,
                         std::span<const int32_t> head_ids) {
  LACUNA_CHECK(layout.seq_len == x.shape[1], "{}: layout of {} tokens for {}, expected equal", who,
               layout.seq_len, x.describe());
  LACUNA_CHECK(
      layout.offsets.empty() ||
          layout.offsets.size() >= head_ids.size() * (static_cast<size_t>(layout.num_blocks) + 1),
      "{}: {} offsets for {} heads, expected {} for each", who, layout.offsets.size(),
      head_ids.size(), layout.num_blocks + 1);
}

// [head_ids.size(), rows, columns] f32.
inline void check_out(const char* who, Reach reach, const TensorView& out,
                      std::span<const int32_t> head_ids, int64_t rows, int64_t columns) {
  check_reach(who, reach, out);
  LACUNA_CHECK(out.rank == 3 && out.dtype == DType::f32 &&
                   out.shape[0] == static_cast<int64_t>(head_ids.size()) && out.shape[1] == rows &&
                   out.shape[2] == columns,
               "{}: out {}, expected [{}, {}, {}] f32", who, out.describe(), head_ids.size(), rows,
               columns);
}

inline void check_block_mean(Reach reach, const TensorView& x, std::span<const int32_t> head_ids,
                             const BlockLayout& layout, const TensorView& out) {
  check_rows("block_mean", reach, x, 3);
  check_heads("block_mean", head_ids, x);
  check_layout("block_mean", layout, x, head_ids);
  check_out("block_mean", reach, out, head_ids, layout.num_blocks, x.shape[2]);
}

// q and k of one call, and its score per pair of blocks.
inline void check_pair(const char* who, Reach reach, const TensorView& q, const TensorView& k,
                       std::span<const int32_t> head_ids, const BlockLayout& q_layout,
                       const BlockLayout& k_layout, const TensorView& out) {
  for (const TensorView* x : {&q, &k}) {
    check_rows(who, reach, *x, 3);
    check_heads(who, head_ids, *x);
    check_layout(who, x == &q ? q_layout : k_layout, *x, head_ids);
  }
  LACUNA_CHECK(q.dtype == k.dtype && q.shape[2] == k.shape[2] && q.shape[2] > 0,
               "{}: q {} and k {}, expected one dtype and head_dim, 1 or more", who, q.describe(),
               k.describe());
  check_out(who, reach, out, head_ids, q_layout.num_blocks, k_layout.num_blocks);
}

inline void check_antidiagonal(Reach reach, const TensorView& q, const TensorView& k,
                               std::span<const int32_t> head_ids, const BlockLayout& q_layout,
                               const BlockLayout& k_layout, int32_t stride, const TensorView& out) {
  LACUNA_CHECK(stride > 0, "antidiagonal_scores: stride {}, expected 1 or more", stride);
  for (const BlockLayout* layout : {&q_layout, &k_layout})
    LACUNA_CHECK(layout->offsets.empty() && layout->block > 0 && layout->block % stride == 0 &&
                     layout->seq_len > 0,
                 "antidiagonal_scores: {} tokens in blocks of {}, expected 1 or more in uniform "
                 "blocks of a multiple of stride {}",
                 layout->seq_len, layout->block, stride);
  check_pair("antidiagonal_scores", reach, q, k, head_ids, q_layout, k_layout, out);
}

inline void check_block_mass(Reach reach, const TensorView& q, const TensorView& k,
                             const float* lse, std::span<const int32_t> head_ids,
                             const BlockLayout& q_layout, const BlockLayout& k_layout,
                             const TensorView& out) {
  check_pair("block_mass", reach, q, k, head_ids, q_layout, k_layout, out);
  LACUNA_CHECK(lse != nullptr || out.numel() == 0, "block_mass: lse null, expected [{}, {}]",
               q.shape[0], q.shape[1]);
}

inline void check_nearest(Reach reach, const TensorView& x, std::span<const int32_t> head_ids,
                          const TensorView& centroids, const TensorView& labels) {
  constexpr const char* kWho = "nearest_centroids";
  const auto heads = static_cast<int64_t>(head_ids.size());
  check_rows(kWho, reach, x, 3);
  check_heads(kWho, head_ids, x);
  check_reach(kWho, reach, centroids);
  check_reach(kWho, reach, labels);
  LACUNA_CHECK(x.shape[2] > 0, "{}: {}, expected head_dim 1 or more", kWho, x.describe());
  LACUNA_CHECK(centroids.rank == 3 && centroids.dtype == x.dtype && centroids.contiguous() &&
                   centroids.shape[0] == heads && centroids.shape[1] > 0 &&
                   centroids.shape[2] == x.shape[2],
               "{}: centroids {}, expected [{}, 1 or more, {}] {}, contiguous", kWho,
               centroids.describe(), heads, x.shape[2], dtype_name(x.dtype));
  LACUNA_CHECK(labels.rank == 2 && labels.dtype == DType::i32 && labels.contiguous() &&
                   labels.shape[0] == heads && labels.shape[1] == x.shape[1],
               "{}: labels {}, expected [{}, {}] i32, contiguous", kWho, labels.describe(), heads,
               x.shape[1]);
}

// Scores of a mask's blocks, and one parameter per head.
inline void check_scores(const char* who, Reach reach, const TensorView& scores, size_t num_params,
                         const BlockMask& mask) {
  check_reach(who, reach, scores);
  LACUNA_CHECK(scores.rank == 3 && scores.dtype == DType::f32 &&
                   scores.shape[0] == mask.num_heads() && scores.shape[1] == mask.num_q_blocks() &&
                   scores.shape[2] == mask.num_k_blocks(),
               "{}: scores {}, expected [{}, {}, {}] f32 as the mask", who, scores.describe(),
               mask.num_heads(), mask.num_q_blocks(), mask.num_k_blocks());
  LACUNA_CHECK(static_cast<int64_t>(num_params) == mask.num_heads(),
               "{}: {} parameters, expected one for each of {} heads", who, num_params,
               mask.num_heads());
}

inline void check_top_p(Reach reach, const TensorView& scores, std::span<const float> top_p,
                        const BlockMask& mask) {
  check_scores("select_top_p", reach, scores, top_p.size(), mask);
  for (float p : top_p)
    LACUNA_CHECK(p >= 0.0f && p <= 1.0f, "select_top_p: top_p {}, expected 0 to 1", p);
}

inline void check_top_k(Reach reach, const TensorView& scores, std::span<const int32_t> top_k,
                        const BlockMask& mask) {
  check_scores("select_top_k", reach, scores, top_k.size(), mask);
}

// Found while the op runs.
inline void check_top_p_score(float score, int64_t head, int64_t q_block) {
  LACUNA_CHECK(score >= 0.0f && std::isfinite(score),
               "select_top_p: score {} at head {} query block {}, expected finite, 0 or more",
               score, head, q_block);
}
inline void check_top_k_score(float score, int64_t head, int64_t q_block) {
  LACUNA_CHECK(!std::isnan(score),
               "select_top_k: score {} at head {} query block {}, expected a number", score, head,
               q_block);
}

inline void check_permute(const char* who, Reach reach, const TensorView& x, const int32_t* order,
                          const TensorView& out, bool scatter) {
  for (const TensorView* t : {&x, &out}) {
    check_reach(who, reach, *t);
    check_rank(who, *t, 3);
    check_channels(who, *t);
  }
  LACUNA_CHECK(x.shape[0] == out.shape[0] && x.shape[2] == out.shape[2] &&
                   (!scatter || x.shape[1] == out.shape[1]),
               "{}: {} to {}, expected equal heads and channels, and for a scatter equal tokens",
               who, x.describe(), out.describe());
  LACUNA_CHECK(x.dtype == out.dtype && !is_quantized(x.dtype), "{}: {} to {}, expected one dtype",
               who, x.describe(), out.describe());
  LACUNA_CHECK(order != nullptr || out.numel() == 0, "{}: order null, expected {} tokens", who,
               out.shape[1]);
}

// Found while the op runs.
inline void check_token(const char* who, int64_t token, int64_t head, int64_t position,
                        int64_t count) {
  LACUNA_CHECK(token >= 0 && token < count, "{}: order {} at head {} position {}, expected 0 to {}",
               who, token, head, position, count - 1);
}

inline void check_merge(Reach reach, const TensorView& out_a, const float* lse_a,
                        const TensorView& out_b, const float* lse_b) {
  for (const TensorView* x : {&out_a, &out_b}) check_rows("merge_lse", reach, *x, 3);
  check_same_shape("merge_lse", out_a, out_b);
  check_one_dtype("merge_lse", out_a, out_b);
  const int64_t rows = out_a.shape[0] * out_a.shape[1];
  LACUNA_CHECK(rows == 0 || (lse_a != nullptr && lse_b != nullptr),
               "merge_lse: lse null, expected {} values", rows);
}

}  // namespace lacuna
