// SPDX-License-Identifier: Apache-2.0
// Mass of each pair of blocks under given log-sum-exps (Backend::block_mass): tiles of q k^T become
// probabilities in place, are summed down the rows of each query block, then along each key block.
#pragma once

#include "lacuna/backend/cuda/pool.cuh"

namespace lacuna::cuda {

template <class T>
class BlockMass {
 public:
  LACUNA_DEVICE explicit BlockMass(const BlockMassArgs& p)
      : p_(p),
        call_(block_id_y()),
        head_(read_global(p.head_ids + call_)),
        first_block_(block_id() * p.blocks_per_item),
        end_block_(min_of(first_block_ + p.blocks_per_item, p.q_blocks.num_blocks)),
        product_(p.q, head_, p.k, head_) {}

  LACUNA_DEVICE void run() {
    const int num_k = p_.k_blocks.num_blocks;
    LACUNA_NO_UNROLL
    for (int u = thread_id(); u < (end_block_ - first_block_) * num_k; u += kProductThreads)
      write_global(out(first_block_ + u / num_k, u % num_k), 0.0f);
    const int begin = block_begin(p_.q_blocks, call_, first_block_);
    const int end = block_begin(p_.q_blocks, call_, end_block_);
    const int uniform = p_.k_blocks.offsets == nullptr ? p_.k_blocks.block : 0;
    // Whole key blocks where they are small enough: none is met twice.
    const int columns = uniform > 0 && uniform <= kProductColumns
                            ? kProductColumns / uniform * uniform
                            : kProductColumns;
    LACUNA_NO_UNROLL
    for (int first = begin; first < end; first += kProductRows) {
      int k_block = 0;
      LACUNA_NO_UNROLL
      for (int column = 0; column < p_.k.tokens; column += columns) {
        const int last = min_of(column + columns, p_.k.tokens);
        product_.run(first, column);
        probabilities(first, min_of(kProductRows, end - first), last - column);
        sync_block();
        sum_rows(first, end);
        sync_block();
        while (block_begin(p_.k_blocks, call_, k_block + 1) <= column) ++k_block;
        sum_columns(first, end, column, last, k_block);
      }
    }
  }

 private:
  LACUNA_DEVICE float* out(int q_block, int k_block) const {
    return p_.out + call_ * p_.out_head_stride + q_block * p_.out_q_stride +
           k_block * p_.out_k_stride;
  }
  // Rows of query block first_block_ + i within the tile at token `first`.
  LACUNA_DEVICE int row_begin(int i, int first) const {
    const int begin = block_begin(p_.q_blocks, call_, first_block_ + i) - first;
    return begin > 0 ? begin : 0;
  }
  LACUNA_DEVICE int row_end(int i, int first, int end) const {
    return min_of(min_of(block_begin(p_.q_blocks, call_, first_block_ + i + 1), end) - first,
                  kProductRows);
  }

  LACUNA_DEVICE void probabilities(int first, int rows, int columns) {
    float* tile = Product<T>::tile();
    LACUNA_NO_UNROLL
    for (int u = thread_id(); u < kProductRows * kProductColumns; u += kProductThreads) {
      const int row = u / kProductColumns, c = u % kProductColumns;
      float x = 0.0f;
      if (row < rows && c < columns) {
        const float lse =
            read_global(p_.lse + static_cast<int64_t>(head_) * p_.q.tokens + first + row);
        x = exp2_approx(multiply_add(tile[row * kTileStride + c], p_.scale_log2, -lse * kLog2E));
      }
      tile[row * kTileStride + c] = x;
    }
  }
  // Into the first row of each query block.
  LACUNA_DEVICE void sum_rows(int first, int end) {
    float* tile = Product<T>::tile();
    LACUNA_NO_UNROLL
    for (int u = thread_id(); u < (end_block_ - first_block_) * kProductColumns;
         u += kProductThreads) {
      const int i = u / kProductColumns, c = u % kProductColumns;
      const int begin = row_begin(i, first), last = row_end(i, first, end);
      if (begin >= last) continue;
      float sum = 0.0f;
      LACUNA_NO_UNROLL
      for (int row = begin; row < last; ++row) sum += tile[row * kTileStride + c];
      tile[begin * kTileStride + c] = sum;
    }
  }
  // A key block that goes on from the last tile adds to what that one left; the barriers of the
  // product lie between.
  LACUNA_DEVICE void sum_columns(int first, int end, int column, int last, int k_block) {
    const float* tile = Product<T>::tile();
    const int q_blocks = end_block_ - first_block_;
    LACUNA_NO_UNROLL
    for (int u = thread_id();; u += kProductThreads) {
      const int i = u % q_blocks, b = k_block + u / q_blocks;
      if (b >= p_.k_blocks.num_blocks || block_begin(p_.k_blocks, call_, b) >= last) return;
      const int begin = row_begin(i, first);
      if (begin >= row_end(i, first, end)) continue;
      const int from = block_begin(p_.k_blocks, call_, b) - column;
      const int to = min_of(block_begin(p_.k_blocks, call_, b + 1), last) - column;
      float sum = 0.0f;
      LACUNA_NO_UNROLL
      for (int c = from > 0 ? from : 0; c < to; ++c) sum += tile[begin * kTileStride + c];
      const int q_block = first_block_ + i;
      const int rows =
          block_begin(p_.q_blocks, call_, q_block + 1) - block_begin(p_.q_blocks, call_, q_block);
      float* at = out(q_block, b);
      write_global(at, read_global(at) + sum / static_cast<float>(rows));
    }
  }

  const BlockMassArgs& p_;
  const int call_, head_, first_block_, end_block_;
  Product<T> product_;
};

template <class T>
LACUNA_DEVICE void block_mass(const BlockMassArgs& p) {
  BlockMass<T>(p).run();
}

}  // namespace lacuna::cuda
