// SPDX-License-Identifier: Apache-2.0
// Matrix products of our own: what runs where cuBLASLt cannot be opened or refuses a shape. A block
// computes 128 x 128 of out.
//
// Operands come through shared memory in stages of 32 (f32: 16) channels by cp.async, which fills
// what lies past the end of a row or of the matrix with zeros:
//
//   wait for stage t; block barrier     everyone's part has landed, stage t-1 is read
//   start stage t + kStages - 1         into the buffer of stage t-1
//   multiply stage t
#pragma once

#include "lacuna/backend/cuda/network_args.h"
#include "lacuna/backend/cuda/quad.cuh"

namespace lacuna::cuda {

// out = base + gate * act(product + bias), then relu; one element.
LACUNA_DEVICE float finished(const Gemm& g, int64_t row, int column, float y) {
  if (g.bias != nullptr) y += load_element<F32>(g.bias, column);
  if (g.activation == Activation::gelu_tanh) y = gelu_tanh(y);
  if (g.activation == Activation::silu) y = silu(y);
  if (g.gate != nullptr) y *= load_element<F32>(g.gate, column);
  if (g.base != nullptr) {
    const int64_t at = row * g.base_stride + column;
    y += g.out_bf16 ? load_element<Bf16>(g.base, at) : load_element<F32>(g.base, at);
  }
  return g.relu && y < 0.0f ? 0.0f : y;
}

LACUNA_DEVICE void store_out(const Gemm& g, int64_t row, int column, float product) {
  if (row >= g.m || column >= g.n) return;
  const float y = finished(g, row, column, product);
  const int64_t at = row * g.out_stride + column;
  if (g.out_bf16) {
    store_element<Bf16>(g.out, at, y);
  } else {
    store_element<F32>(g.out, at, y);
  }
}

// Tiles in bands of kGemmTileRows rows, column by column within a band, so that what runs at one
// time shares its operands in L2.
struct GemmPlace {
  int row, column;
};
LACUNA_DEVICE GemmPlace gemm_place(const Gemm& g) {
  const int rows = (g.m + kGemmTile - 1) / kGemmTile, columns = (g.n + kGemmTile - 1) / kGemmTile;
  const int band = block_id() / (kGemmTileRows * columns);
  const int inside = block_id() - band * kGemmTileRows * columns;
  const int left = rows - band * kGemmTileRows;
  const int height = left < kGemmTileRows ? left : kGemmTileRows;
  return {(band * kGemmTileRows + inside % height) * kGemmTile, inside / height * kGemmTile};
}

// --- bf16: mma.sync ----------------------------------------------------------------------------
// 16-byte chunk c of row r lies at chunk c ^ (r / 2 & 3), so that the eight rows of an ldmatrix
// fall into different banks.
inline constexpr int kGemmStages = 4, kGemmDepth = 32;
struct alignas(128) GemmShared {
  uint16_t x[kGemmStages][kGemmTile][kGemmDepth];
  uint16_t w[kGemmStages][kGemmTile][kGemmDepth];
};

static_assert(sizeof(GemmShared) == kGemmSharedBytes);

LACUNA_DEVICE uint32_t gemm_chunk(const uint16_t (&tile)[kGemmTile][kGemmDepth], int row,
                                  int chunk) {
  return shared_address(&tile[row][0]) + static_cast<uint32_t>((chunk ^ (row >> 1 & 3)) * 16);
}

LACUNA_DEVICE void gemm_load(uint16_t (&to)[kGemmTile][kGemmDepth], const void* base,
                             int64_t stride, int first, int rows, int depth, int k) {
  constexpr int kChunks = kGemmDepth / 8;
  LACUNA_UNROLL
  for (int i = 0; i < kGemmTile * kChunks / kGemmThreads; ++i) {
    const int n = i * kGemmThreads + thread_id();
    const int row = n / kChunks, chunk = n % kChunks;
    const int at = depth + chunk * 8;
    int bytes = first + row < rows ? (k - at) * 2 : 0;
    bytes = bytes < 0 ? 0 : bytes > 16 ? 16 : bytes;
    const uint16_t* from =
        static_cast<const uint16_t*>(base) + (bytes > 0 ? (first + row) * stride + at : 0);
    copy_async(gemm_chunk(to, row, chunk), from, bytes);
  }
}

// 16 channels: 4 x 4 products of 16 x 8 a warp; two warps down, four across.
LACUNA_DEVICE void gemm_multiply(const GemmShared& s, int stage, int step, float (&acc)[4][4][4]) {
  const int lane = thread_id() & 31, warp = thread_id() >> 5;
  uint32_t a[4][4], b[2][4];
  LACUNA_UNROLL
  for (int i = 0; i < 4; ++i)
    load_matrices(a[i], gemm_chunk(s.x[stage], (warp & 1) * 64 + i * 16 + (lane & 15),
                                   step * 2 + (lane >> 4)));
  LACUNA_UNROLL
  for (int j = 0; j < 2; ++j)
    load_matrices(
        b[j], gemm_chunk(s.w[stage], (warp >> 1) * 32 + j * 16 + (lane & 7) + ((lane >> 4) << 3),
                         step * 2 + (lane >> 3 & 1)));
  LACUNA_UNROLL
  for (int i = 0; i < 4; ++i) LACUNA_UNROLL
  for (int j = 0; j < 4; ++j)
    mma(acc[i][j], a[i], b[j >> 1][(j & 1) * 2], b[j >> 1][(j & 1) * 2 + 1], Bf16());
}

LACUNA_DEVICE void gemm_bf16(const Gemm& g) {
  auto& s = *reinterpret_cast<GemmShared*>(shared_memory());
  const GemmPlace place = gemm_place(g);
  const int stages = (g.k + kGemmDepth - 1) / kGemmDepth;
  const auto load = [&](int t) {
    if (t < stages) {
      const int buffer = t % kGemmStages;
      gemm_load(s.x[buffer], g.x, g.x_stride, place.row, g.m, t * kGemmDepth, g.k);
      gemm_load(s.w[buffer], g.w, g.w_stride, place.column, g.n, t * kGemmDepth, g.k);
    }
    copy_async_commit();  // an empty group keeps the count
  };
  float acc[4][4][4] = {};
  LACUNA_UNROLL
  for (int t = 0; t < kGemmStages - 1; ++t) load(t);
  LACUNA_NO_UNROLL
  for (int t = 0; t < stages; ++t) {
    copy_async_wait<kGemmStages - 2>();
    sync_block();
    load(t + kGemmStages - 1);
    LACUNA_UNROLL
    for (int step = 0; step < kGemmDepth / 16; ++step) gemm_multiply(s, t % kGemmStages, step, acc);
  }
  copy_async_wait<0>();
  // Element 2 i + e of a product is row lane / 4 + 8 i, column 2 (lane % 4) + e.
  const int lane = thread_id() & 31, warp = thread_id() >> 5;
  LACUNA_UNROLL
  for (int i = 0; i < 4; ++i) LACUNA_UNROLL
  for (int j = 0; j < 4; ++j) LACUNA_UNROLL
  for (int e = 0; e < 4; ++e)
    store_out(g, place.row + (warp & 1) * 64 + i * 16 + (lane >> 2) + 8 * (e >> 1),
              place.column + (warp >> 1) * 32 + j * 8 + (lane & 3) * 2 + (e & 1), acc[i][j][e]);
}

// --- f32: fused multiply-adds -------------------------------------------------------------------
// Rows of 16 channels, 20 floats apart: the eight rows that a quarter of a warp reads at one time
// fall into different banks.
inline constexpr int kGemmStagesF32 = 3, kGemmDepthF32 = 16;
struct alignas(128) GemmSharedF32 {
  float x[kGemmStagesF32][kGemmTile][kGemmDepthF32 + 4];
  float w[kGemmStagesF32][kGemmTile][kGemmDepthF32 + 4];
};

static_assert(sizeof(GemmSharedF32) == kGemmSharedBytesF32);

LACUNA_DEVICE void gemm_load_f32(float (&to)[kGemmTile][kGemmDepthF32 + 4], const void* base,
                                 int64_t stride, int first, int rows, int depth, int k) {
  constexpr int kChunks = kGemmDepthF32 / 4;
  LACUNA_UNROLL
  for (int i = 0; i < kGemmTile * kChunks / kGemmThreads; ++i) {
    const int n = i * kGemmThreads + thread_id();
    const int row = n / kChunks, chunk = n % kChunks;
    const int at = depth + chunk * 4;
    int bytes = first + row < rows ? (k - at) * 4 : 0;
    bytes = bytes < 0 ? 0 : bytes > 16 ? 16 : bytes;
    const float* from =
        static_cast<const float*>(base) + (bytes > 0 ? (first + row) * stride + at : 0);
    copy_async(shared_address(&to[row][chunk * 4]), from, bytes);
  }
}

// 8 x 8 elements a thread, 16 rows and columns apart.
LACUNA_DEVICE void gemm_multiply_f32(const GemmSharedF32& s, int stage, float (&acc)[8][8]) {
  const int row = thread_id() >> 4, column = thread_id() & 15;
  LACUNA_NO_UNROLL
  for (int c = 0; c < kGemmDepthF32; c += 4) {
    Float4 a[8];
    LACUNA_UNROLL
    for (int i = 0; i < 8; ++i)
      a[i] = *reinterpret_cast<const Float4*>(&s.x[stage][row + 16 * i][c]);
    LACUNA_UNROLL
    for (int j = 0; j < 8; ++j) {
      const Float4 b = *reinterpret_cast<const Float4*>(&s.w[stage][column + 16 * j][c]);
      LACUNA_UNROLL
      for (int i = 0; i < 8; ++i) LACUNA_UNROLL
      for (int e = 0; e < 4; ++e) acc[i][j] = multiply_add(a[i].v[e], b.v[e], acc[i][j]);
    }
  }
}

LACUNA_DEVICE void gemm_f32(const Gemm& g) {
  auto& s = *reinterpret_cast<GemmSharedF32*>(shared_memory());
  const GemmPlace place = gemm_place(g);
  const int stages = (g.k + kGemmDepthF32 - 1) / kGemmDepthF32;
  const auto load = [&](int t) {
    if (t < stages) {
      const int buffer = t % kGemmStagesF32;
      gemm_load_f32(s.x[buffer], g.x, g.x_stride, place.row, g.m, t * kGemmDepthF32, g.k);
      gemm_load_f32(s.w[buffer], g.w, g.w_stride, place.column, g.n, t * kGemmDepthF32, g.k);
    }
    copy_async_commit();
  };
  float acc[8][8] = {};
  LACUNA_UNROLL
  for (int t = 0; t < kGemmStagesF32 - 1; ++t) load(t);
  LACUNA_NO_UNROLL
  for (int t = 0; t < stages; ++t) {
    copy_async_wait<kGemmStagesF32 - 2>();
    sync_block();
    load(t + kGemmStagesF32 - 1);
    gemm_multiply_f32(s, t % kGemmStagesF32, acc);
  }
  copy_async_wait<0>();
  LACUNA_UNROLL
  for (int i = 0; i < 8; ++i) LACUNA_UNROLL
  for (int j = 0; j < 8; ++j)
    store_out(g, place.row + (thread_id() >> 4) + 16 * i,
              place.column + (thread_id() & 15) + 16 * j, acc[i][j]);
}

// What cuBLASLt could not do at the end of a product. Four elements per thread.
LACUNA_DEVICE void gemm_finish(const FinishArgs& p) {
  const Gemm& g = p.gemm;
  const auto quads = static_cast<uint32_t>(g.n + 3) / 4;
  const auto index =
      static_cast<uint32_t>(block_id()) * kWalkThreads + static_cast<uint32_t>(thread_id());
  const auto row = static_cast<int>(index / quads);
  if (row >= g.m) return;
  const auto column = static_cast<int>(index - static_cast<uint32_t>(row) * quads) * 4;
  const int count = quad_count(column, g.n);
  float y[4];
  load_quad(p.product, static_cast<int64_t>(index) * 4, 1, count, false, true, y);
  LACUNA_UNROLL
  for (int e = 0; e < 4; ++e)
    if (e < count) y[e] = finished(g, row, column + e, y[e]);
  store_quad(g.out, row * g.out_stride + column, 1, count, g.out_bf16, p.vector, y);
}

}  // namespace lacuna::cuda
