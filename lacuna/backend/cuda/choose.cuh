// SPDX-License-Identifier: Apache-2.0
// Which blocks of a row of scores are kept (Backend::select_top_p, select_top_k). No sort: the
// lowest kept score is found bit by bit, as the largest threshold that still leaves enough (mass or
// number) at or above it; of scores equal to it the first are taken until it is enough. Sums are
// double and are added in an order that depends on the row's length only.
#pragma once

#include "lacuna/backend/cuda/element.cuh"
#include "lacuna/backend/cuda/select_args.h"

namespace lacuna::cuda {

// Unsigned integers in the order of the floats they stand for; both zeros are one.
LACUNA_DEVICE uint32_t ordered(float x) {
  const uint32_t bits = float_bits(x == 0.0f ? 0.0f : x);
  return bits ^ (bits >> 31 != 0 ? 0xffffffffu : 0x80000000u);
}

class Chooser {
 public:
  LACUNA_DEVICE explicit Chooser(const SelectArgs& p)
      : p_(p),
        row_(p.scores + block_id_y() * p.head_stride + block_id() * p.q_stride),
        cells_(reinterpret_cast<double*>(shared_memory())),
        staged_(reinterpret_cast<float*>(cells_ + kSelectCells)) {}

  LACUNA_DEVICE void run() {
    const int64_t row = static_cast<int64_t>(block_id_y()) * grid_blocks() + block_id();
    uint32_t* words = p_.words + row * p_.num_words;
    if (!stage()) {
      if (thread_id() == 0) write_global(p_.bad + row, first_bad());
      for (int w = thread_id(); w < p_.num_words; w += kSelectThreads) write_global(words + w, 0u);
      return;
    }
    if (thread_id() == 0) write_global(p_.bad + row, 0.0f);
    double wanted;
    if (p_.top_p != nullptr) {
      wanted = static_cast<double>(read_global(p_.top_p + block_id_y())) * at_least(0u);
      by_number_ = !(wanted > 0.0);  // nothing is wanted: the highest alone
      if (by_number_) wanted = 1.0;
    } else {
      by_number_ = true;
      const int k = read_global(p_.top_k + block_id_y());
      wanted = static_cast<double>(k < 1 ? 1 : k > p_.n ? p_.n : k);
    }
    uint32_t threshold = 0;
    LACUNA_NO_UNROLL
    for (uint32_t bit = 0x80000000u; bit != 0; bit >>= 1)
      if (at_least(threshold | bit) >= wanted) threshold |= bit;
    const double above = threshold == 0xffffffffu ? 0.0 : at_least(threshold + 1);
    if (thread_id() < 32) mark(words, threshold, above, wanted);
  }

 private:
  LACUNA_DEVICE float given(int i) const { return read_global(row_ + i * p_.k_stride); }
  LACUNA_DEVICE float score(int i) const { return p_.staged ? staged_[i] : given(i); }
  LACUNA_DEVICE double weight(float x) const { return by_number_ ? 1.0 : static_cast<double>(x); }
  // Top-k ranks everything but NaN, top-p adds up: finite, 0 or more.
  LACUNA_DEVICE bool good(float x) const {
    return p_.top_p == nullptr ? x == x : x >= 0.0f && x - x == 0.0f;
  }

  LACUNA_DEVICE bool stage() {
    bool all = true;
    LACUNA_NO_UNROLL
    for (int i = thread_id(); i < p_.n; i += kSelectThreads) {
      const float x = given(i);
      all = all && good(x);
      if (p_.staged) staged_[i] = x;
    }
    return barrier_all(1, kSelectThreads, all);
  }
  LACUNA_DEVICE float first_bad() const {
    int i = 0;
    while (good(given(i))) ++i;
    return given(i);
  }

  // Sum of the weights of all scores that are `threshold` or more, to every thread.
  LACUNA_DEVICE double at_least(uint32_t threshold) {
    double sum = 0.0;
    LACUNA_NO_UNROLL
    for (int i = thread_id(); i < p_.n; i += kSelectThreads) {
      const float x = score(i);
      if (ordered(x) >= threshold) sum += weight(x);
    }
    LACUNA_UNROLL
    for (int lanes = 16; lanes > 0; lanes /= 2) sum += shuffle_xor(sum, lanes);
    // Two sets of cells in turn: the last one may still be read.
    turn_ ^= 1;
    double* cells = cells_ + turn_ * (kSelectThreads / 32);
    if ((thread_id() & 31) == 0) cells[thread_id() >> 5] = sum;
    sync_block();
    return (cells[0] + cells[1]) + (cells[2] + cells[3]);
  }

  // One warp, 32 scores at a time.
  LACUNA_DEVICE void mark(uint32_t* words, uint32_t threshold, double above, double wanted) {
    const int lane = thread_id();
    int ties = 0;  // equal to the threshold so far
    LACUNA_NO_UNROLL
    for (int w = 0; w < p_.num_words; ++w) {
      const int i = w * 32 + lane;
      const float x = i < p_.n ? score(i) : 0.0f;
      const bool tie = i < p_.n && ordered(x) == threshold;
      const uint32_t tied = ballot(tie);
      const int rank = ties + count_bits(tied & ((1u << lane) - 1u));
      const bool keep =
          i < p_.n && (ordered(x) > threshold || (tie && above + rank * weight(x) < wanted));
      const uint32_t bits = ballot(keep);
      if (lane == 0) write_global(words + w, bits);
      ties += count_bits(tied);
    }
  }

  const SelectArgs& p_;
  const float* row_;
  double* cells_;
  float* staged_;
  bool by_number_ = false;
  int turn_ = 0;
};
static_assert(kSelectThreads == 128);

LACUNA_DEVICE void choose(const SelectArgs& p) {
  Chooser(p).run();
}

}  // namespace lacuna::cuda
