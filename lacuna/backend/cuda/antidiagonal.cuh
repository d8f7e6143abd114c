// SPDX-License-Identifier: Apache-2.0
// XAttention block scores (arXiv 2503.16428, Alg. 1; see Backend::antidiagonal_scores). A group is
// `stride` tokens laid end to end, queries backwards; then all antidiagonal sums are one product of
// groups, whose softmax and block sums are taken tile by tile. Nothing of the size of the product
// is stored: per row of a strip, the log-sum-exp of each key block ("part"), in base 2.
#pragma once

#include "lacuna/backend/cuda/product.cuh"

namespace lacuna::cuda {

template <class T>
class Antidiagonal {
 public:
  LACUNA_DEVICE Antidiagonal(const AntidiagonalArgs& p, int call, int item)
      : p_(p),
        call_(call),
        first_block_(item * p.blocks_per_item),
        first_group_(first_block_ * p.q_per_block),
        end_group_(min_of(first_group_ + p.blocks_per_item * p.q_per_block, p.q_groups)),
        parts_(p.parts + block_id() * static_cast<int64_t>(p.k_blocks) * kProductRows),
        product_(p.q, read_global(p.head_ids + call), p.k, read_global(p.head_ids + call)) {}

  LACUNA_DEVICE void run() {
    // Tiles of whole key blocks where blocks are small enough.
    const int columns = p_.k_per_block <= kProductColumns
                            ? kProductColumns / p_.k_per_block * p_.k_per_block
                            : kProductColumns;
    LACUNA_NO_UNROLL
    for (int first = first_group_; first < end_group_; first += kProductRows) {
      rows_ = min_of(kProductRows, end_group_ - first);
      LACUNA_NO_UNROLL
      for (int column = 0; column < p_.k_groups; column += columns) {
        product_.run(first, column);
        reduce(first, column, min_of(columns, p_.k_groups - column));
      }
      sync_block();
      normalisers();
      masses(first);
    }
  }

 private:
  // Pairs that a short query group shares with whole key groups.
  LACUNA_DEVICE int group_size(int group) const {
    return min_of(p_.q.group, p_.q.tokens - group * p_.q.group);
  }

  // Parts of the tile's key blocks. A block of more than 128 groups comes in several tiles; then
  // the same thread meets it again, since a tile has one block.
  LACUNA_DEVICE void reduce(int first, int column, int columns) {
    const int width = min_of(p_.k_per_block, kProductColumns);
    const int blocks = (columns + width - 1) / width;
    const float* tile = Product<T>::tile();
    LACUNA_NO_UNROLL
    for (int u = thread_id(); u < blocks * kProductRows; u += kProductThreads) {
      const int row = u % kProductRows, begin = u / kProductRows * width;
      if (row >= rows_) continue;
      const int end = min_of(begin + width, columns);
      const int size = p_.compat ? p_.q.group : group_size(first + row);
      const float scale = p_.scale_log2 / static_cast<float>(size);
      // The last key group may be short: fewer pairs, another divisor.
      const int last = p_.k_groups - 1 - column;
      const int tail = min_of(size, p_.k.tokens - (p_.k_groups - 1) * p_.k.group);
      const float last_scale = p_.compat ? scale : p_.scale_log2 / static_cast<float>(tail);
      const float* x = tile + row * kTileStride;
      float top = minus_infinity();
      LACUNA_NO_UNROLL
      for (int c = begin; c < end; ++c) top = max_of(top, x[c] * (c == last ? last_scale : scale));
      float sum = 0.0f;
      LACUNA_NO_UNROLL
      for (int c = begin; c < end; ++c)
        sum += exp2_approx(x[c] * (c == last ? last_scale : scale) - top);
      const int block = (column + begin) / p_.k_per_block;
      float part = top + log2_approx(sum);
      float* at = parts_ + static_cast<int64_t>(block) * kProductRows + row;
      if (block * p_.k_per_block < column) part = log2_add(read_global(at), part);
      write_global(at, part);
    }
  }

  LACUNA_DEVICE static float log2_add(float a, float b) {
    const float top = max_of(a, b);
    return top + log2_approx(exp2_approx(a - top) + exp2_approx(b - top));
  }

  // Log-sum-exp of every row, into extra()[row]: each row by two threads, taking blocks in turn.
  LACUNA_DEVICE void normalisers() {
    const int row = thread_id() % kProductRows, half = thread_id() / kProductRows;
    float top = minus_infinity(), sum = 0.0f;
    if (row < rows_) {
      if (half == 0 && p_.num_zero > 0.0f) top = 0.0f, sum = p_.num_zero;
      LACUNA_NO_UNROLL
      for (int b = half; b < p_.k_blocks; b += 2) {
        const float part = read_global(parts_ + static_cast<int64_t>(b) * kProductRows + row);
        if (part > top) {
          sum *= exp2_approx(top - part);
          top = part;
        }
        sum += exp2_approx(part - top);
      }
    }
    float* tops = Product<T>::extra();
    float* sums = tops + 2 * kProductRows;
    tops[thread_id()] = top;
    sums[thread_id()] = sum;
    sync_block();
    if (half == 0) {
      const float other = tops[row + kProductRows], all = max_of(top, other);
      // One block: the second thread has seen nothing.
      const float rest =
          other == minus_infinity() ? 0.0f : sums[row + kProductRows] * exp2_approx(other - all);
      tops[row] = all + log2_approx(sum * exp2_approx(top - all) + rest);
    }
    sync_block();
  }

  // Means over the rows of each query block, 32 key blocks at a time. A query block of more than
  // 128 groups adds up over several strips of rows, always in the same thread.
  LACUNA_DEVICE void masses(int first) {
    constexpr int kBlocks = 32;
    float* probability = Product<T>::tile();  // [kBlocks][kTileStride], rows contiguous
    const float* lse = Product<T>::extra();
    const int width = min_of(p_.q_per_block, kProductRows);
    const int q_blocks = (rows_ + width - 1) / width;
    LACUNA_NO_UNROLL
    for (int block = 0; block < p_.k_blocks; block += kBlocks) {
      LACUNA_NO_UNROLL
      for (int u = thread_id(); u < kBlocks * kProductRows; u += kProductThreads) {
        const int row = u % kProductRows, b = block + u / kProductRows;
        if (row >= rows_ || b >= p_.k_blocks) continue;
        float x = exp2_approx(read_global(parts_ + static_cast<int64_t>(b) * kProductRows + row) -
                              lse[row]);
        if (b == p_.k_blocks - 1) x += p_.zero_in_last * exp2_approx(-lse[row]);
        probability[u / kProductRows * kTileStride + row] = x;
      }
      sync_block();
      LACUNA_NO_UNROLL
      for (int u = thread_id(); u < q_blocks * kBlocks; u += kProductThreads) {
        const int b = block + u % kBlocks, i = u / kBlocks;
        if (b >= p_.k_blocks) continue;
        const int end = min_of((i + 1) * width, rows_);
        float sum = 0.0f;
        LACUNA_NO_UNROLL
        for (int row = i * width; row < end; ++row)
          sum += probability[u % kBlocks * kTileStride + row];
        const int q_block = first_block_ + i;
        const int groups = min_of(p_.q_per_block, p_.q_groups - q_block * p_.q_per_block);
        float* out =
            p_.out + call_ * p_.out_head_stride + q_block * p_.out_q_stride + b * p_.out_k_stride;
        const float before = first > first_group_ ? read_global(out) : 0.0f;
        write_global(out, before + sum / static_cast<float>(groups));
      }
      sync_block();
    }
  }

  const AntidiagonalArgs& p_;
  const int call_, first_block_, first_group_, end_group_;
  int rows_ = 0;  // of the strip at hand
  float* parts_;
  Product<T> product_;
};

template <class T>
LACUNA_DEVICE void antidiagonal(const AntidiagonalArgs& p) {
  LACUNA_NO_UNROLL
  for (int i = block_id(); i < p.calls * p.items; i += grid_blocks())
    Antidiagonal<T>(p, i / p.items, i % p.items).run();
}

}  // namespace lacuna::cuda
