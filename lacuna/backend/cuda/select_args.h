// SPDX-License-Identifier: Apache-2.0
// What the host hands to selection kernels: plain data, device pointers. Strides in elements;
// channels are contiguous unless a stride is given. "Call" is an index into the heads of the call.
#pragma once

#include <stdint.h>

namespace lacuna::cuda {

// Where blocks of tokens lie: offsets [calls, num_blocks + 1], or uniform.
struct BlockArgs {
  const int32_t* offsets;  // or null
  int32_t block, num_blocks, seq_len;
};

// Mean of the tokens of each block. One thread block per (block of tokens, call).
struct BlockMeanArgs {
  const void* x;  // [heads, seq_len, d]
  int64_t x_head_stride, x_token_stride;
  const int32_t* head_ids;
  BlockArgs blocks;
  int32_t d;
  float* out;  // [calls, num_blocks, d]
  int64_t out_head_stride, out_block_stride, out_channel_stride;
};
inline constexpr int kBlockMeanThreads = 128;

// --- products of rows (product.cuh) ------------------------------------------------------------
// A matrix whose row r is tokens r * group ... r * group + group - 1 laid end to end; absent tokens
// of the last row are zeros. Within a row the tokens come in order, or backwards.
enum class TokenOrder : int32_t {
  forward,
  backward,         // a short row turns round within its own tokens, its zeros come last
  backward_padded,  // a short row turns round with its zeros, which come first
};
struct RowsArgs {
  const void* data;  // [heads, tokens, d]
  int64_t head_stride, token_stride;
  int32_t tokens, d, group;
  TokenOrder order;
  int32_t vector;  // 16-byte pieces are aligned and lie within a token
};
inline constexpr int kProductThreads = 256;
inline constexpr int kProductRows = 128, kProductColumns = 128;  // of a tile
inline constexpr int kProductStages = 3;
// Stages of both operands, 128 bytes a row at a time; then what an epilogue needs beside its tile.
inline constexpr int kProductExtraFloats = 512;
inline constexpr int kProductSharedBytes =
    kProductStages * (kProductRows + kProductColumns) * 128 + kProductExtraFloats * 4;

// XAttention block scores. An item is a strip of whole query blocks; thread blocks take items in
// turn.
struct AntidiagonalArgs {
  RowsArgs q, k;  // rows are groups
  const int32_t* head_ids;
  int32_t calls, items, blocks_per_item;  // items: of one call
  int32_t q_groups, k_groups;
  int32_t q_per_block, k_per_block, q_blocks, k_blocks;  // groups per block, blocks
  float scale_log2;  // sm_scale * log2(e), before the division by pairs
  int32_t compat;
  float num_zero, zero_in_last;  // groups of padding keys: all, and those in the last block
  float* parts;                  // scratch [thread blocks, k_blocks, kProductRows]
  float* out;                    // [calls, q_blocks, k_blocks]
  int64_t out_head_stride, out_q_stride, out_k_stride;
};

// Block mass under given log-sum-exps. One thread block per (item, call).
struct BlockMassArgs {
  RowsArgs q, k;  // rows are tokens
  const int32_t* head_ids;
  BlockArgs q_blocks, k_blocks;
  int32_t blocks_per_item;  // query blocks; more than 1 only if they fit a tile together
  float scale_log2;
  const float* lse;  // [heads, q_len] natural log
  float* out;        // [calls, q_blocks, k_blocks]
  int64_t out_head_stride, out_q_stride, out_k_stride;
};

// Nearest centroid of each token. norms: half the squared length of each centroid, [calls, count].
struct NearestArgs {
  RowsArgs x, centroids;  // rows are tokens and centroids, the latter by call
  const int32_t* head_ids;
  int32_t count;
  float* norms;
  int32_t* labels;  // [calls, tokens]
};
inline constexpr int kNormThreads = 256;  // a warp per centroid

// --- selection ---------------------------------------------------------------------------------
// The highest scores of each row whose sum reaches a share of the row's (top_p), or a number of
// them (top_k). One thread block per (query block, head).
struct SelectArgs {
  const float* scores;  // [heads, q_blocks, n]
  int64_t head_stride, q_stride, k_stride;
  int32_t n;
  int32_t staged;        // the row fits shared memory
  const float* top_p;    // [heads], or null
  const int32_t* top_k;  // [heads], or null
  uint32_t* words;       // [heads, q_blocks, words]: bit b % 32 of word b / 32
  int32_t num_words;
  float* bad;  // [heads, q_blocks]: the first score that cannot be ranked, or 0
};
inline constexpr int kSelectThreads = 128;
inline constexpr int kSelectCells = 2 * (kSelectThreads / 32);  // doubles in shared memory
inline constexpr int kSelectMostStaged = 16384;                 // scores

// --- tokens ------------------------------------------------------------------------------------
// Rows of `units` units of 1 to 16 bytes; strides in units.
struct PermuteArgs {
  const void* x;
  void* out;
  int64_t x_head_stride, x_token_stride, out_head_stride, out_token_stride;
  const int32_t* order;
  int64_t order_head_stride;
  int32_t tokens, units;
  int32_t scatter;
};
inline constexpr int kPermuteThreads = 256;
inline constexpr int kPermuteUnits = 4 * kPermuteThreads;  // of a thread block

// Merges b into a. A warp per row.
struct MergeArgs {
  void* a;
  const void* b;  // [heads, rows, d]
  int64_t a_head_stride, a_row_stride, b_head_stride, b_row_stride;
  float* lse_a;
  const float* lse_b;  // [heads, rows]
  int32_t rows, d;
};
inline constexpr int kMergeThreads = 256;

}  // namespace lacuna::cuda
