// SPDX-License-Identifier: Apache-2.0
// Token rows: moving them into another order, and merging partial attentions.
#pragma once

#include "lacuna/backend/cuda/element.cuh"
#include "lacuna/backend/cuda/select_args.h"

namespace lacuna::cuda {

struct alignas(16) Unit16 {
  uint32_t w[4];
};

// to[p] = from[order[p]], or to[order[p]] = from[p] (scatter), in units of T. Grid: (parts, heads).
template <class T>
LACUNA_DEVICE void permute(const PermuteArgs& p) {
  const T* x = static_cast<const T*>(p.x) + block_id_y() * p.x_head_stride;
  T* out = static_cast<T*>(p.out) + block_id_y() * p.out_head_stride;
  const int32_t* order = p.order + block_id_y() * p.order_head_stride;
  LACUNA_UNROLL
  for (int i = 0; i < kPermuteUnits / kPermuteThreads; ++i) {
    const int64_t n =
        static_cast<int64_t>(block_id()) * kPermuteUnits + i * kPermuteThreads + thread_id();
    if (n >= static_cast<int64_t>(p.tokens) * p.units) return;
    const int token = static_cast<int>(n / p.units), unit = static_cast<int>(n % p.units);
    const int other = read_global(order + token);
    const int from = p.scatter ? token : other, to = p.scatter ? other : token;
    write_global(out + to * p.out_token_stride + unit,
                 read_global(x + from * p.x_token_stride + unit));
  }
}

// With t = exp(-|a - b|), the shares are 1 / (1 + t) and t / (1 + t). Grid:
// (rows / 8, heads).
template <class T>
LACUNA_DEVICE void merge(const MergeArgs& p) {
  const int row = block_id() * (kMergeThreads / 32) + (thread_id() >> 5);
  if (row >= p.rows) return;
  const int64_t head = block_id_y(), at = head * p.rows + row;
  const float a = read_global(p.lse_a + at), b = read_global(p.lse_b + at);
  if (b == minus_infinity()) return;  // nothing to add
  const float t = exp2_approx((a < b ? a - b : b - a) * kLog2E);
  const float large = 1.0f / (1.0f + t), small = t * large;
  const float weight_a = a < b ? small : large, weight_b = a < b ? large : small;
  const int64_t at_a = head * p.a_head_stride + row * p.a_row_stride;
  const int64_t at_b = head * p.b_head_stride + row * p.b_row_stride;
  LACUNA_NO_UNROLL
  for (int c = thread_id() & 31; c < p.d; c += 32)
    store_element<T>(
        p.a, at_a + c,
        weight_a * load_element<T>(p.a, at_a + c) + weight_b * load_element<T>(p.b, at_b + c));
  sync_warp();
  if ((thread_id() & 31) == 0)
    write_global(p.lse_a + at, max_of(a, b) + log2_approx(1.0f + t) * kLn2);
}

}  // namespace lacuna::cuda
