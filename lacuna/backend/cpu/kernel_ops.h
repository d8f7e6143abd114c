// SPDX-License-Identifier: Apache-2.0
// What one instruction set offers to the attention driver. Kernel files (wider ISA flags) and the
// driver share this header; it holds plain data only, no standard C++ headers.
//
// A query tile has at most kVoteRows rows, padded to granules of kGranule rows that lie in SIMD
// lanes: scores are computed transposed, S^T = K Q^T, so that maxima and sums over keys need no
// horizontal operation. A piece has at most kVoteKeys keys. Logits and maxima are in log2 units.
#pragma once

#include <stdint.h>

#include "lacuna/backend/attend_params.h"

namespace lacuna::cpu {

inline constexpr int32_t kGranule = 16;

// Row state of a tile; lanes of padding rows hold finite rubbish.
struct alignas(64) TileRows {
  float m[kVoteRows];      // reference maximum of the logits so far, log2 units; -inf = none yet
  float l[kVoteRows];      // sum of 2^(logit - m)
  float u[kVoteRows];      // recall rule: bound on the dropped mass in the same units
  float mhat[kVoteRows];   // maximum within the current piece
  float alpha[kVoteRows];  // 2^(m before - m after) of the current piece
  float sum[kVoteRows];    // this piece's share of l, relative to the new m
};

// Rows of one head: element (i, c) at data + i * stride + c.
struct RowsView {
  const void* data;
  int64_t stride;  // elements
  AttendDType dtype;
};

// Packed K and V of a piece take head_dim elements for each of its keys, their number rounded up to
// key_multiple. Buffers are 64-byte aligned unless said.
struct KernelOps {
  const char* name;
  int32_t element_bytes;  // of packed K, V and Q: 4 (f32) or 2 (bf16)
  int32_t key_multiple;
  int32_t dim_multiple;  // head_dim must be a multiple of this
  // How far (log2 units) a row's maximum may rise before m follows it: > 0 spares a kernel most
  // rescaling of O. Used without a skip rule only, whose votes need the true maximum.
  float max_slack;

  // Around a run of calls on one thread, for register state; may be null.
  void (*begin)();
  void (*end)();

  // Q of a tile -> [granule][head_dim][16]; padding rows become zero. There is room for four
  // granules in every buffer of a tile. An f32 kernel multiplies by
  // `scale`, a bf16 kernel leaves that to scores().
  void (*pack_q)(const RowsView& q, int32_t rows, int32_t head_dim, float scale, void* packed);
  // One piece; `packed` needs no alignment.
  void (*pack_k)(const RowsView& k, int32_t keys, int32_t head_dim, void* packed);
  void (*pack_v)(const RowsView& v, int32_t keys, int32_t head_dim, void* packed);
  // s [granule][kVoteKeys][16] = logits, state->mhat = their maxima. key_bias [keys] in log2 units
  // or null. `next` (null = none) is prefetched, next_bytes of it, along the way.
  void (*scores)(const void* packed_k, const void* packed_q, int32_t keys, int32_t rows,
                 int32_t head_dim, float scale, const float* key_bias, float* s, TileRows* state,
                 const char* next, int64_t next_bytes);
  // Where mhat > m + slack, m = mhat; sets alpha and sum, updates l; s becomes P in the kernel's
  // own format.
  void (*softmax)(float* s, int32_t keys, int32_t rows, float slack, TileRows* state);
  // o [granule][head_dim][16] = o * alpha + V^T P; `first` takes o as zero without reading it.
  void (*accumulate)(const void* packed_v, const void* p, int32_t keys, int32_t rows,
                     int32_t head_dim, bool first, const TileRows* state, float* o,
                     const char* next, int64_t next_bytes);
  // out = o / l, zero where l = 0; o may be null when no piece was kept.
  void (*finish)(const float* o, int32_t rows, int32_t head_dim, const TileRows* state, void* out,
                 int64_t out_stride, AttendDType dtype);
  void (*exp2_rows)(const float* x, float* y);  // kVoteRows values
};

extern const KernelOps kAttendF32Avx2;
extern const KernelOps kAttendF32Avx512;
extern const KernelOps kAttendBf16Avx512Bf16;
extern const KernelOps kAttendBf16Amx;

}  // namespace lacuna::cpu
