// SPDX-License-Identifier: Apache-2.0
// What the host hands to network and copy kernels: plain data, device pointers. Strides in
// elements; channels are contiguous. `vector`: every row starts on a multiple of 4 elements in
// memory.
#pragma once

#include <stdint.h>

namespace lacuna::cuda {

enum class Activation : uint8_t { none, gelu_tanh, silu };

// out = base + gate * act(x w^T + bias), or 0 where relu and that is below: x [m, k], w [n, k] of
// one type, out and base [m, n] of one type, rows strided; f32 accumulation. base may be out
// itself.
struct Gemm {
  const void* x;
  const void* w;
  void* out;
  const void* base;   // or null = 0
  const void* bias;   // [n] f32 (bf16 if bias_bf16), or null = 0
  const float* gate;  // [n], or null = 1
  int64_t x_stride, w_stride, out_stride, base_stride;
  int32_t m, n, k;
  bool bf16, out_bf16, bias_bf16;
  Activation activation;
  bool relu;
};

// The rest of a Gemm, given its product in f32.
struct FinishArgs {
  Gemm gemm;
  const float* product;  // [m, n], rows of whole quads
  bool vector;
};

struct LayerNormArgs {
  const float* x;
  void* out;
  int64_t x_stride, out_stride;
  const float* weight;  // [d] each, or null
  const float* bias;
  const float* scale;
  const float* shift;
  float eps;
  int32_t d;
  bool out_bf16, vector;
};

struct RmsNormArgs {
  const void* x;
  void* out;
  int64_t x_stride, out_stride;
  const float* weight;  // [d], or [span]
  float eps;
  int32_t d;
  int32_t rows, span;  // of rms_norm_heads: channels of a head
  bool bf16, out_bf16, vector;
  // Rotary tables of backend.h, on the device; head_dim = 0 without.
  int32_t head_dim, height, width;
  bool summed;          // then `pairs` are those of all heads
  int32_t pairs[3];     // of frames, height, width
  const float* cos[3];  // [positions, pairs]
  const float* sin[3];
};

struct ChannelNormArgs {
  const void* x;
  void* out;
  const float* gamma;  // [c]
  int64_t rows;
  int32_t c;
  bool bf16, silu, vector;
};

// Samples x [m, c] contiguous, one after the other, in chunks of rows.
struct GroupNormArgs {
  const void* x;
  void* out;
  void* sums;           // [samples, groups, chunks] GroupSums
  float* coefficients;  // [samples, 3, c_stride]: mean, factor, offset; c_stride in whole quads
  const float* weight;  // [c] each
  const float* bias;
  int64_t m;
  int32_t c, c_stride, groups;
  int32_t chunks, chunk_rows;  // of a sample
  int32_t lanes;               // rows that a block reads at once
  float eps;
  bool bf16, silu, vector;
};

// Elements of up to three views at once. The last dimension is walked in groups of `group`
// elements, one thread each; `groups` of them in a row, at most 2^31 in total.
inline constexpr int kWalkRank = 5, kWalkViews = 3;
struct Walk {
  int32_t rank;
  int32_t group;
  uint32_t groups, total;
  uint32_t shape[kWalkRank];
  int64_t stride[kWalkViews][kWalkRank];
};

struct CopyArgs {
  const void* from;
  void* to;
  Walk walk;  // from, to
  bool vector;
};

// Elementwise, of two views.
struct PairArgs {
  const void* a;
  const void* b;
  void* out;
  Walk walk;  // a, b, out
  bool bf16, vector;
};

// Rows of the matrix that turns a convolution into a product: row p is output position first + p,
// [kt, kh, kw, c] of its input, zeros outside the picture and from the last tap on. In units of 2,
// 4 or 16 bytes.
struct PatchArgs {
  const void* x;  // [t, h, w, c]
  void* out;      // [positions, row]
  int64_t first;
  int32_t positions;
  int32_t h, w, c;  // c in units
  int32_t row;      // units of a row of out
  int32_t kt, kh, kw;
  int32_t stride_t, stride_h, stride_w, pad_top, pad_left;
  int32_t out_h, out_w;
};

// Threads of a block.
inline constexpr int kRowThreads = 128;      // layer_norm, rms_norm: a block is a row
inline constexpr int kRowHeadBytes = 32;     // shared memory in front of the row
inline constexpr int kChannelThreads = 256;  // channel_norm: a warp is a row; or a head
inline constexpr int kGroupThreads = 256;    // group_norm: a block is a chunk of rows
inline constexpr int kWalkThreads = 256;     // a thread is a group
inline constexpr int kGemmThreads = 256;

inline constexpr int kGroupRun = 32;   // rows of a thread whose sums are f32
inline constexpr int kGroupLoads = 4;  // rows that a thread has in flight
inline constexpr int kGroupSumsBytes = 16;

inline constexpr int kGemmTile = 128;  // rows and columns of out that a block computes
inline constexpr int kGemmSharedBytes = 65536, kGemmSharedBytesF32 = 61440;
inline constexpr int kGemmTileRows = 8;  // of tiles that follow each other column by column: L2

}  // namespace lacuna::cuda
