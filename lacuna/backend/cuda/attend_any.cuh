// SPDX-License-Identifier: Apache-2.0
// Attention for what the tensor-core kernels refuse: f32, other head dimensions up to 512,
// unaligned tensors, scales of either sign. Without skip rules. Walks the same jobs and key tiles
// (launch.h).
//
// A thread block takes 32 rows of a half, a warp 4 of them. A slot's 64 logits of a row lie two to
// a lane; its K comes through shared memory 64 channels at a time. For P V a lane owns every 32nd
// channel, so V is read straight from global memory, each row of it in one go. Everything is f32.
#pragma once

#include "lacuna/backend/cuda/attend_any_args.h"
#include "lacuna/backend/cuda/element.cuh"

namespace lacuna::cuda {

// kDim: head_dim rounded up.
template <class T, int kDim>
class AttendAny {
 public:
  static constexpr int kRows = kAnyRows / (kAnyThreads / 32);  // of a warp
  static constexpr int kChannels = kDim / 32;                  // of a lane

  LACUNA_DEVICE explicit AttendAny(const AttendAnyArgs& p)
      : p_(p.call),
        d_(p.head_dim),
        job_(read_global(p_.jobs + block_id() / kAnyBlocksPerJob)),
        half_(block_id() / (kAnyBlocksPerJob / 2) % 2),
        first_(block_id() % (kAnyBlocksPerJob / 2) * kAnyRows),
        warp_(thread_id() >> 5),
        lane_(thread_id() & 31),
        q_(reinterpret_cast<float*>(shared_memory())),
        k_(q_ + kAnyRows * kDim),
        probabilities_(k_ + kSlotKeys * kAnyKeyStride + warp_ * kRows * kSlotKeys) {
    token_ = (half_ == 0 ? job_.row[0] : job_.row[1]) + first_;
    rows_ = (half_ == 0 ? job_.rows[0] : job_.rows[1]) - first_;
  }

  LACUNA_DEVICE void run() {
    if (rows_ <= 0) return;
    load_queries();
    LACUNA_UNROLL
    for (int r = 0; r < kRows; ++r) {
      top_[r] = minus_infinity();
      sum_[r] = 0.0f;
      LACUNA_UNROLL
      for (int j = 0; j < kChannels; ++j) o_[r][j] = 0.0f;
    }
    LACUNA_NO_UNROLL
    for (int t = 0; t < job_.num_tiles; ++t) {
      const KeyTile tile = read_global(p_.tiles + job_.tile_begin + t);
      const int64_t out_slot = (job_.out_begin + t) * 2;
      const int n0 = half_ == 0 ? tile.valid[0][0] : tile.valid[1][0];
      const int n1 = half_ == 0 ? tile.valid[0][1] : tile.valid[1][1];
      if (n0 > 0) slot(tile.key[0], n0, out_slot);
      if (n1 > 0) slot(tile.key[1], n1, out_slot + 1);
    }
    store();
  }

 private:
  LACUNA_DEVICE void load_queries() {
    LACUNA_NO_UNROLL
    for (int i = thread_id(); i < kAnyRows * kDim; i += kAnyThreads) {
      const int row = i / kDim, c = i % kDim;
      q_[i] = row < rows_ && c < d_
                  ? load_element<T>(
                        p_.q, job_.head * p_.q_head_stride + (token_ + row) * p_.q_token_stride + c)
                  : 0.0f;
    }
  }

  // One slot of `keys` keys.
  LACUNA_DEVICE void slot(int first_key, int keys, int64_t out_slot) {
    float s[kRows][2] = {};
    LACUNA_NO_UNROLL
    for (int c = 0; c < d_; c += kAnyChunk) {
      sync_block();
      LACUNA_NO_UNROLL
      for (int i = thread_id(); i < kSlotKeys * kAnyChunk; i += kAnyThreads) {
        const int key = i / kAnyChunk, channel = c + i % kAnyChunk;
        k_[key * kAnyKeyStride + i % kAnyChunk] =
            key < keys && channel < d_
                ? load_element<T>(p_.k, job_.head * p_.k_head_stride +
                                            (first_key + key) * p_.k_token_stride + channel)
                : 0.0f;
      }
      sync_block();
      products(s, c);
    }
    LACUNA_UNROLL
    for (int r = 0; r < kRows; ++r) softmax(s[r], r, first_key, keys, out_slot);
    sync_warp();
    values(first_key, keys);  // the next slot's barriers come before its probabilities
  }

  LACUNA_DEVICE void products(float (&s)[kRows][2], int first_channel) {
    LACUNA_NO_UNROLL
    for (int c = 0; c < kAnyChunk; c += 4) {
      Float4 k[2];
      LACUNA_UNROLL
      for (int i = 0; i < 2; ++i)
        k[i] = *reinterpret_cast<const Float4*>(k_ + (lane_ + 32 * i) * kAnyKeyStride + c);
      LACUNA_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const Float4 q =
            *reinterpret_cast<const Float4*>(q_ + (warp_ * kRows + r) * kDim + first_channel + c);
        LACUNA_UNROLL
        for (int i = 0; i < 2; ++i) LACUNA_UNROLL
        for (int e = 0; e < 4; ++e) s[r][i] = multiply_add(q.v[e], k[i].v[e], s[r][i]);
      }
    }
  }

  // Logits in base 2 -> probabilities in shared memory, not yet divided by the row sum.
  LACUNA_DEVICE void softmax(float (&s)[2], int r, int first_key, int keys, int64_t out_slot) {
    const int row = warp_ * kRows + r;
    LACUNA_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int key = lane_ + 32 * i;
      s[i] *= p_.scale_log2;
      if (p_.bias != nullptr && key < keys && row < rows_)
        s[i] = multiply_add(read_global(p_.bias + job_.head * p_.bias_head_stride +
                                        (token_ + row) * p_.bias_q_stride + first_key + key),
                            kLog2E, s[i]);
      if (key >= keys) s[i] = minus_infinity();
    }
    const float top = max_of(top_[r], warp_max(max_of(s[0], s[1])));
    // A row that has seen -inf only must not compute inf - inf.
    const float shift = top == minus_infinity() ? 0.0f : top;
    const float factor = exp2_approx(top_[r] - shift);
    top_[r] = top;
    float sum = 0.0f;
    LACUNA_UNROLL
    for (int i = 0; i < 2; ++i) {
      const float x = exp2_approx(s[i] - shift);
      probabilities_[r * kSlotKeys + lane_ + 32 * i] = x;
      sum += x;
    }
    sum_[r] = sum_[r] * factor + sum;
    LACUNA_UNROLL
    for (int j = 0; j < kChannels; ++j) o_[r][j] *= factor;
    if (p_.slot_lse == nullptr) return;
    sum = warp_sum(sum);
    if (lane_ == 0 && row < rows_)
      write_global(p_.slot_lse + out_slot * (2 * kHalfRows) + half_ * kHalfRows + first_ + row,
                   sum == 0.0f ? minus_infinity() : shift + log2_approx(sum));
  }

  LACUNA_DEVICE void values(int first_key, int keys) {
    LACUNA_NO_UNROLL
    for (int key = 0; key < keys; ++key) {
      const int64_t at = job_.head * p_.v_head_stride + (first_key + key) * p_.v_token_stride;
      float x[kRows];
      LACUNA_UNROLL
      for (int r = 0; r < kRows; ++r) x[r] = probabilities_[r * kSlotKeys + key];
      LACUNA_UNROLL
      for (int j = 0; j < kChannels; ++j) {
        const int c = lane_ + 32 * j;
        if (c >= d_) continue;
        const float v = load_element<T>(p_.v, at + c);
        LACUNA_UNROLL
        for (int r = 0; r < kRows; ++r) o_[r][j] = multiply_add(x[r], v, o_[r][j]);
      }
    }
  }

  LACUNA_DEVICE void store() {
    LACUNA_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const int row = warp_ * kRows + r;
      const float sum = warp_sum(sum_[r]);
      if (row >= rows_) continue;
      // Not `sum > 0`: a NaN must reach the output.
      const float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
      const int64_t token = token_ + row;
      LACUNA_UNROLL
      for (int j = 0; j < kChannels; ++j) {
        const int c = lane_ + 32 * j;
        if (c < d_)
          store_element<T>(p_.out, job_.head * p_.out_head_stride + token * p_.out_token_stride + c,
                           o_[r][j] * factor);
      }
      if (p_.lse != nullptr && lane_ == 0)
        write_global(p_.lse + static_cast<int64_t>(job_.head) * p_.q_len + token,
                     sum == 0.0f ? minus_infinity() : (top_[r] + log2_approx(sum)) * kLn2);
    }
  }

  const AttendArgs& p_;
  const int d_;
  const Job job_;
  const int half_, first_, warp_, lane_;
  float *q_, *k_, *probabilities_;
  int token_, rows_;
  float o_[kRows][kChannels];
  float top_[kRows];  // running maximum of the row, base 2
  float sum_[kRows];  // this lane's share
};

template <class T, int kDim>
LACUNA_DEVICE void attend_any(const AttendAnyArgs& p) {
  AttendAny<T, kDim>(p).run();
}

}  // namespace lacuna::cuda
