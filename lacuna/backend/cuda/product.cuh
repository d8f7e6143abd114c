// SPDX-License-Identifier: Apache-2.0
// Tiles of 128 x 128 dot products between rows of two operands, left in shared memory for an
// epilogue: what antidiagonal scores, block mass and nearest centroids have in common. bf16 on
// tensor cores (mma.sync), f32 on plain cores.
//
// 256 threads. 128 bytes of every row at a time go through three stages of shared memory with
// cp.async; one barrier per chunk, since a stage is refilled only after everyone has passed the
// next chunk's barrier. Then the tile takes the place of the stages. Each operand is read once per
// tile, so a tile does 64 FLOP for each byte of bf16 from L2.
#pragma once

#include "lacuna/backend/cuda/element.cuh"
#include "lacuna/backend/cuda/select_args.h"

namespace lacuna::cuda {

inline constexpr int kRowChunk = 128;  // bytes of a row in a stage
inline constexpr int kOperandBytes = kProductRows * kRowChunk;
inline constexpr int kTileStride = kProductColumns + 1;  // floats: columns fall into all banks
static_assert(kProductRows == kProductColumns && kProductRows == 128 && kProductThreads == 256);
static_assert(kProductRows * kTileStride * 4 <= 2 * kOperandBytes * kProductStages);
static_assert(kProductSharedBytes <= kMostSharedBytes);

// 16-byte piece of a row; swizzled so that the eight rows of an ldmatrix fall into different banks.
LACUNA_DEVICE unsigned char* piece_of(unsigned char* operand, int row, int piece) {
  return operand + row * kRowChunk + ((piece ^ (row & 7)) * 16);
}

// This thread's share of an operand: one piece of every 32nd row.
template <class T>
class RowLoader {
 public:
  using Bits = typename ElementBits<T>::Type;
  static constexpr int kPiece = 16 / static_cast<int>(sizeof(Bits));  // elements

  LACUNA_DEVICE RowLoader(const RowsArgs& rows, int64_t head) : p_(rows), head_(head) {}

  LACUNA_DEVICE int chunks() const { return (p_.group * p_.d + 8 * kPiece - 1) / (8 * kPiece); }
  LACUNA_DEVICE void start(int first_row) {
    first_ = first_row;
    slot_ = 0;
    channel_ = (thread_id() & 7) * kPiece;
    settle();
  }
  // The next chunk.
  LACUNA_DEVICE void load(unsigned char* to) {
    LACUNA_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int row = (thread_id() >> 3) + 32 * i;
      unsigned char* piece = piece_of(to, row, thread_id() & 7);
      if (p_.vector) {
        const int token = slot_ < p_.group ? token_of(first_ + row, slot_) : -1;
        copy_async(shared_address(piece), at(token < 0 ? 0 : token, token < 0 ? 0 : channel_),
                   token < 0 ? 0 : 16);
      } else {
        load_one_by_one(row, reinterpret_cast<Bits*>(piece));
      }
    }
    channel_ += 8 * kPiece;
    settle();
  }

 private:
  LACUNA_DEVICE const Bits* at(int token, int channel) const {
    return static_cast<const Bits*>(p_.data) + head_ * p_.head_stride + token * p_.token_stride +
           channel;
  }
  LACUNA_DEVICE void settle() {
    while (channel_ >= p_.d) channel_ -= p_.d, ++slot_;
  }
  // Token in a slot of a row, or -1.
  LACUNA_DEVICE int token_of(int row, int slot) const {
    const int begin = row * p_.group;
    int i = slot;
    if (p_.order == TokenOrder::backward) i = min_of(p_.group, p_.tokens - begin) - 1 - slot;
    if (p_.order == TokenOrder::backward_padded) i = p_.group - 1 - slot;
    return i >= 0 && begin + i < p_.tokens ? begin + i : -1;
  }
  LACUNA_DEVICE void load_one_by_one(int row, Bits* to) const {
    int slot = slot_, channel = channel_;
    LACUNA_NO_UNROLL
    for (int e = 0; e < kPiece; ++e) {
      const int token = slot < p_.group ? token_of(first_ + row, slot) : -1;
      to[e] = token < 0 ? Bits() : read_global(at(token, channel));
      if (++channel == p_.d) channel = 0, ++slot;
    }
  }

  const RowsArgs& p_;
  const int64_t head_;
  int first_ = 0, slot_ = 0, channel_ = 0;
};

// Sums of one thread. Warps are 4 x 2 over the tile, 32 rows and 64 columns each, as fragments of
// mma.sync: see softmax.cuh.
template <class T>
struct TileSums {
  float v[64];

  LACUNA_DEVICE void add(unsigned char* a, unsigned char* b) {
    const int warp = thread_id() >> 5, lane = thread_id() & 31;
    const int a_row = (warp & 3) * 32 + (lane & 15), a_piece = lane >> 4;
    const int b_row = (warp >> 2) * 64 + (lane & 7) + ((lane >> 4) << 3), b_piece = (lane >> 3) & 1;
    LACUNA_UNROLL
    for (int x = 0; x < 4; ++x) {
      uint32_t high[4], low[4];
      load_matrices(high, shared_address(piece_of(a, a_row, 2 * x + a_piece)));
      load_matrices(low, shared_address(piece_of(a, a_row + 16, 2 * x + a_piece)));
      LACUNA_UNROLL
      for (int g = 0; g < 4; ++g) {
        uint32_t r[4];
        load_matrices(r, shared_address(piece_of(b, b_row + 16 * g, 2 * x + b_piece)));
        mma(v + 8 * g, high, r[0], r[1], T());
        mma(v + 8 * g + 4, high, r[2], r[3], T());
        mma(v + 32 + 8 * g, low, r[0], r[1], T());
        mma(v + 32 + 8 * g + 4, low, r[2], r[3], T());
      }
    }
  }
  LACUNA_DEVICE void store(float* tile) const {
    const int warp = thread_id() >> 5, lane = thread_id() & 31;
    const int row = (warp & 3) * 32 + (lane >> 2), column = (warp >> 2) * 64 + (lane & 3) * 2;
    LACUNA_UNROLL
    for (int i = 0; i < 64; ++i)
      tile[(row + 16 * (i >> 5) + 8 * ((i >> 1) & 1)) * kTileStride + column + 8 * ((i >> 2) & 7) +
           (i & 1)] = v[i];
  }
};

// Rows ty + 16 i and columns tx + 16 j.
template <>
struct TileSums<F32> {
  float v[64];

  LACUNA_DEVICE void add(unsigned char* a, unsigned char* b) {
    const int ty = thread_id() >> 4, tx = thread_id() & 15;
    LACUNA_NO_UNROLL
    for (int p = 0; p < 8; ++p) {
      Float4 left[8];
      LACUNA_UNROLL
      for (int i = 0; i < 8; ++i)
        left[i] = *reinterpret_cast<const Float4*>(piece_of(a, ty + 16 * i, p));
      LACUNA_UNROLL
      for (int j = 0; j < 8; ++j) {
        const Float4 right = *reinterpret_cast<const Float4*>(piece_of(b, tx + 16 * j, p));
        LACUNA_UNROLL
        for (int i = 0; i < 8; ++i) LACUNA_UNROLL
        for (int e = 0; e < 4; ++e)
          v[8 * i + j] = multiply_add(left[i].v[e], right.v[e], v[8 * i + j]);
      }
    }
  }
  LACUNA_DEVICE void store(float* tile) const {
    const int ty = thread_id() >> 4, tx = thread_id() & 15;
    LACUNA_UNROLL
    for (int i = 0; i < 64; ++i)
      tile[(ty + 16 * (i >> 3)) * kTileStride + tx + 16 * (i & 7)] = v[i];
  }
};

template <class T>
class Product {
 public:
  LACUNA_DEVICE Product(const RowsArgs& a, int64_t a_head, const RowsArgs& b, int64_t b_head)
      : a_(a, a_head), b_(b, b_head) {}

  // tile()[r * kTileStride + c] = row a_first + r of a times row b_first + c of b; rows past the
  // end are zeros. Barriers stand before the stages are filled and after the tile is written.
  LACUNA_DEVICE void run(int a_first, int b_first) {
    unsigned char* stages = shared_memory();
    TileSums<T> sums;
    LACUNA_UNROLL
    for (int i = 0; i < 64; ++i) sums.v[i] = 0.0f;
    a_.start(a_first);
    b_.start(b_first);
    const int chunks = a_.chunks();
    sync_block();
    LACUNA_UNROLL
    for (int c = 0; c < kProductStages - 1; ++c) {
      if (c < chunks) load(stages, c);
      copy_async_commit();
    }
    int filled = kProductStages - 1, used = 0;
    LACUNA_NO_UNROLL
    for (int c = 0; c < chunks; ++c) {
      copy_async_wait<kProductStages - 2>();
      sync_block();
      if (c + kProductStages - 1 < chunks) load(stages, filled);
      copy_async_commit();
      unsigned char* stage = stages + used * 2 * kOperandBytes;
      sums.add(stage, stage + kOperandBytes);
      filled = filled + 1 == kProductStages ? 0 : filled + 1;
      used = used + 1 == kProductStages ? 0 : used + 1;
    }
    copy_async_wait<0>();
    sync_block();
    sums.store(tile());
    sync_block();
  }

  LACUNA_DEVICE static float* tile() { return reinterpret_cast<float*>(shared_memory()); }
  LACUNA_DEVICE static float* extra() {
    return reinterpret_cast<float*>(shared_memory() + kProductStages * 2 * kOperandBytes);
  }

 private:
  LACUNA_DEVICE void load(unsigned char* stages, int stage) {
    a_.load(stages + stage * 2 * kOperandBytes);
    b_.load(stages + stage * 2 * kOperandBytes + kOperandBytes);
  }

  RowLoader<T> a_, b_;
};

}  // namespace lacuna::cuda
