// SPDX-License-Identifier: Apache-2.0
// The plain-data boundary between host code and attention kernels. Kernel files compiled with wider
// ISA flags include this header and intrinsics only, so it must stay free of standard C++ headers
// with inline functions.
#pragma once

#include <stdint.h>

#include "lacuna/core/visit_order.h"

namespace lacuna {

enum class AttendDType : uint8_t { f32, bf16, f16 };  // f16: cuda only

// What the kernel drops while it runs. m = running row maximum of the scaled logits, mhat = maximum
// of the row within the key block, lse = running log-sum-exp of what was kept so far (natural log).
// A key block is skipped for a query tile only if every row of the tile agrees, and a skipped
// maximum is never merged into m. The first visited piece of a query tile is always kept; a row
// whose logits in the piece are all -inf votes to skip.
enum class SkipKind : uint8_t {
  none,
  running_max,  // skip iff mhat - m < ln(param)            BLASST, arXiv 2512.12087
  running_lse,  // skip iff mhat - lse < param              cumulative energy, arXiv 2606.16317 eq.
                // 5
  recall,       // skip iff U + kappa n e^(mhat-m) <= (1-r)/r * l, then U += kappa n e^(mhat-m);
                // r = param. kappa = 1 certifies kept mass >= r on every row.
};

// Rows vote in tiles of kVoteRows counted from the start of their query block; keys are judged in
// pieces of at most kVoteKeys counted from the start of their key block. Fixed so that every
// backend and ISA drops the same pieces (up to rounding).
inline constexpr int32_t kVoteRows = 64;
inline constexpr int32_t kVoteKeys = 128;

// Element (head h, token i, channel c) of q lies at q + h*q_head_stride + i*q_token_stride + c, and
// so on; channels are contiguous. Strides are in elements.
//
// The call computes `num_heads` heads: call index i is tensor head head_ids[i] (or i when null).
// Tensors, lse, block_mass, skip_bits and bias are indexed by tensor head; mask, offsets and
// skip parameters by call index.
struct AttendParams {
  const void* q = nullptr;  // [heads, q_len, head_dim]
  const void* k = nullptr;  // [heads, k_len, head_dim]
  const void* v = nullptr;  // [heads, k_len, head_dim]
  void* out = nullptr;      // [heads, q_len, head_dim], same dtype as q
  AttendDType dtype = AttendDType::f32;
  int64_t q_head_stride = 0, q_token_stride = 0;
  int64_t k_head_stride = 0, k_token_stride = 0;
  int64_t v_head_stride = 0, v_token_stride = 0;
  int64_t out_head_stride = 0, out_token_stride = 0;

  int32_t num_heads = 0;
  const int32_t* head_ids = nullptr;  // [num_heads] or null
  int64_t q_len = 0, k_len = 0;
  int32_t head_dim = 0;
  float sm_scale = 0.0f;  // logits are sm_scale * q.k + bias

  // Added to the scaled logits: bias[h*bias_head_stride + i*bias_q_stride + j]. Null = none.
  // bias_head_stride = bias_q_stride = 0 is a bias per key (padding collapse).
  const float* bias = nullptr;
  int64_t bias_head_stride = 0, bias_q_stride = 0;

  // Blocks. Uniform: block_q / block_k tokens. Explicit: offsets [num_heads, blocks + 1], else
  // null.
  int32_t block_q = 128, block_k = 128;
  int32_t num_q_blocks = 0, num_k_blocks = 0;
  const int32_t* q_offsets = nullptr;
  const int32_t* k_offsets = nullptr;

  // Kept blocks as BlockMask stores them: key block b of (call index, query block) is bit b % 64 of
  // its row's word b / 64. Bits past the last key block are zero. Null = every block.
  const uint64_t* mask = nullptr;  // [num_heads, num_q_blocks, (num_k_blocks + 63) / 64]
  // In which order a query tile visits its blocks. A skip rule's verdicts depend on it; without a
  // rule a backend may visit them in any order.
  VisitOrder order = VisitOrder::ascending;

  // Skip rule; parameters [num_heads]. skip_kappa may be null (= 1).
  SkipKind skip = SkipKind::none;
  const float* skip_param = nullptr;
  const float* skip_kappa = nullptr;

  // Optional outputs, null when not wanted.
  float* lse = nullptr;  // [heads, q_len] natural log, of what was kept; stride q_len
  float* block_mass =
      nullptr;  // [heads, num_q_blocks, num_k_blocks]: mean over the block's query
                // rows of softmax mass in the key block; rows sum to 1; 0 if dropped
  // Bit kb of row (head, qb) is set when the rule skipped every piece of a kept block for every
  // query tile; never for a block without keys or rows.
  // [heads, num_q_blocks, (num_k_blocks + 63) / 64]; the caller zeroes nothing.
  uint64_t* skip_bits = nullptr;
  // (query, key) pairs whose P*V product was computed, summed over all rows: [num_heads] or null.
  int64_t* pv_pairs = nullptr;
};

}  // namespace lacuna
