// SPDX-License-Identifier: Apache-2.0
#include "lacuna/engine/compensate.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "lacuna/core/threads.h"

namespace lacuna {

namespace {

DType dtype_of(const AttendParams& p) {
  return p.dtype == AttendDType::f32 ? DType::f32 : DType::bf16;
}

void set_operands(AttendParams& p, const TensorView& q, const TensorView& k, const TensorView& v,
                  const TensorView& out) {
  p.q = q.data, p.q_head_stride = q.stride[0], p.q_token_stride = q.stride[1];
  p.k = k.data, p.k_head_stride = k.stride[0], p.k_token_stride = k.stride[1];
  p.v = v.data, p.v_head_stride = v.stride[0], p.v_token_stride = v.stride[1];
  p.out = out.data, p.out_head_stride = out.stride[0], p.out_token_stride = out.stride[1];
}

// ln n_j of every key block, [heads, blocks]; -inf where a block has no keys.
void fill_log_counts(const BlockLayout& layout, const TensorView& bias) {
  for (int64_t h = 0; h < bias.shape[0]; ++h)
    for (int32_t b = 0; b < layout.num_blocks; ++b)
      bias.as<float>()[h * layout.num_blocks + b] = std::log(static_cast<float>(layout.size(h, b)));
}

// The query block of every row, [heads, q_len], and that block's lse.
void spread(const BlockLayout& layout, const float* block_lse, std::span<int32_t> block_of,
            int64_t q_len, float* row_lse) {
  parallel_tasks(static_cast<int64_t>(block_of.size()) / q_len, [&](int64_t h, int) {
    for (int32_t b = 0; b < layout.num_blocks; ++b)
      for (int64_t i = layout.begin(h, b); i < layout.end(h, b); ++i) {
        block_of[h * q_len + i] = b;
        row_lse[h * q_len + i] = block_lse[h * layout.num_blocks + b];
      }
  });
}

}  // namespace

BlockMask Compensator::dropped(Compensation kind, const AttendParams& p, const Selection& s,
                               int64_t& pairs) const {
  BlockMask tail(p.num_heads, p.num_q_blocks, p.num_k_blocks);
  const int64_t words = tail.words_per_row();
  for (int64_t row = 0; row < tail.num_heads() * p.num_q_blocks; ++row) {
    const int64_t h = row / p.num_q_blocks;
    const auto qb = static_cast<int32_t>(row % p.num_q_blocks);
    if (s.q_layout.size(h, qb) == 0) continue;
    const int64_t queries = kind == Compensation::pooled_row ? s.q_layout.size(h, qb) : 1;
    const auto skipped = [&](int32_t kb) {
      return p.skip_bits != nullptr && (p.skip_bits[row * words + kb / 64] >> (kb % 64) & 1) != 0;
    };
    for (int32_t kb = 0; kb < p.num_k_blocks; ++kb) {
      const bool listed = s.mask.empty() || s.mask.get(h, qb, kb);
      if ((listed && !skipped(kb)) || s.k_layout.size(h, kb) == 0) continue;
      tail.set(h, qb, kb);
      pairs += queries;
    }
  }
  return tail;
}

TensorView Compensator::means(const char* name, const TensorView& x, const BlockLayout& layout,
                              DType dtype) {
  std::vector<int32_t> heads(static_cast<size_t>(x.shape[0]));
  std::iota(heads.begin(), heads.end(), 0);
  const std::string as_f32 = std::string("compensate.mean.") + name;
  const TensorView mean =
      workspace_.get(as_f32, DType::f32, {x.shape[0], layout.num_blocks, x.shape[2]});
  backend_.block_mean(x, heads, layout, mean);
  if (dtype == DType::f32) return mean;
  const TensorView rounded =
      workspace_.get(as_f32 + ".rounded", dtype, {x.shape[0], layout.num_blocks, x.shape[2]});
  backend_.copy(mean, rounded);
  return rounded;
}

AttendParams Compensator::tail_call(Compensation kind, const AttendParams& p,
                                    const Selection& selection, const TensorView& q,
                                    const TensorView& k, const TensorView& v) {
  const bool per_row = kind == Compensation::pooled_row;
  // One mean query per block is few rows: they stay f32.
  const DType dtype = per_row ? dtype_of(p) : DType::f32;
  const int64_t heads = p.num_heads, num_k = p.num_k_blocks;
  AttendParams tail;
  tail.dtype = dtype == DType::f32 ? AttendDType::f32 : AttendDType::bf16;
  tail.num_heads = p.num_heads;
  tail.head_dim = p.head_dim;
  tail.sm_scale = p.sm_scale;
  tail.q_len = per_row ? p.q_len : p.num_q_blocks;
  tail.k_len = num_k;
  tail.block_q = per_row ? p.block_q : 1;
  tail.block_k = 1;
  tail.num_q_blocks = p.num_q_blocks;
  tail.num_k_blocks = p.num_k_blocks;
  tail.q_offsets = per_row ? p.q_offsets : nullptr;
  const TensorView bias = workspace_.host("compensate.bias", DType::f32, {heads, num_k});
  fill_log_counts(selection.k_layout, bias);
  tail.bias = bias.as<float>();
  tail.bias_head_stride = num_k;
  tail.lse = workspace_.host("compensate.tail_lse", DType::f32, {heads, tail.q_len}).as<float>();
  set_operands(tail, per_row ? q : means("q", q, selection.q_layout, dtype),
               means("k", k, selection.k_layout, dtype), means("v", v, selection.k_layout, dtype),
               workspace_.get("compensate.tail", dtype, {heads, tail.q_len, int64_t{p.head_dim}}));
  return tail;
}

int64_t Compensator::join(Compensation kind, const AttendParams& p, const Selection& selection,
                          const TensorView& q, const TensorView& k, const TensorView& v,
                          const TensorView& out) {
  int64_t pairs = 0;
  const BlockMask mask = dropped(kind, p, selection, pairs);
  if (pairs == 0) return 0;
  AttendParams tail = tail_call(kind, p, selection, q, k, v);
  tail.mask = mask.words();
  backend_.attend(tail);

  const int64_t heads = p.num_heads, d = p.head_dim;
  TensorView rows = workspace_.get("compensate.tail", dtype_of(tail), {heads, tail.q_len, d});
  const float* rows_lse = tail.lse;
  if (kind == Compensation::pooled_block) {
    TensorView blocks = rows;
    if (blocks.dtype != dtype_of(p)) {
      blocks = workspace_.get("compensate.block_tail", dtype_of(p), {heads, tail.q_len, d});
      backend_.copy(rows, blocks);
    }
    // One tail per query block -> one per row.
    rows = workspace_.get("compensate.rows", dtype_of(p), {heads, p.q_len, d});
    float* lse = workspace_.host("compensate.rows_lse", DType::f32, {heads, p.q_len}).as<float>();
    block_of_.resize(static_cast<size_t>(heads * p.q_len));
    spread(selection.q_layout, tail.lse, block_of_, p.q_len, lse);
    backend_.gather_tokens(blocks, block_of_.data(), p.q_len, rows);
    rows_lse = lse;
  }
  // merge_lse writes the sum back; the reported lse stays that of what was kept.
  float* lse = workspace_.host("compensate.lse", DType::f32, {heads, p.q_len}).as<float>();
  std::copy_n(p.lse, heads * p.q_len, lse);
  backend_.merge_lse(out, lse, rows, rows_lse);
  return pairs;
}

}  // namespace lacuna
