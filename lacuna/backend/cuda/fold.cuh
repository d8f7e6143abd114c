// SPDX-License-Identifier: Apache-2.0
// From what attention leaves behind to skip bits, pair counts and block mass.
#pragma once

#include "lacuna/backend/cuda/blocks.cuh"
#include "lacuna/backend/cuda/plan_args.h"

namespace lacuna::cuda {

// The rows of one query block as halves of jobs.
class QueryRows {
 public:
  LACUNA_DEVICE explicit QueryRows(const FoldArgs& p)
      : p_(p),
        call_(p.first_call + block_id_y()),
        begin_(block_begin(p.q_blocks, call_, block_id())),
        end_(block_begin(p.q_blocks, call_, block_id() + 1)) {}

  LACUNA_DEVICE int call() const { return call_; }
  LACUNA_DEVICE int size() const { return end_ - begin_; }
  LACUNA_DEVICE int64_t by_call() const {
    return static_cast<int64_t>(call_) * p_.q_blocks.num_blocks + block_id();
  }
  LACUNA_DEVICE int64_t by_head() const {
    return static_cast<int64_t>(read_global(p_.head_ids + call_)) * p_.q_blocks.num_blocks +
           block_id();
  }

  // Calls f(job, which half of it, first row, rows) for each half.
  template <class F>
  LACUNA_DEVICE void halves(const F& f) const {
    if (begin_ == end_) return;
    int half = read_global(p_.first_half + by_call());
    LACUNA_NO_UNROLL
    for (int row = begin_; row < end_; row += kHalfRows, ++half)
      f(read_global(p_.jobs + read_global(p_.places + half / 2)), half & 1, row,
        min_of(kHalfRows, end_ - row));
  }

 private:
  const FoldArgs& p_;
  const int call_, begin_, end_;
};

// A key tile as a half left it: keys of each slot that count and were kept or not.
struct FoldTile {
  int key[2], valid[2];
  unsigned kept;
};
LACUNA_DEVICE FoldTile fold_tile(const FoldArgs& p, const Job& job, int half, int t) {
  const KeyTile tile = read_global(p.tiles + job.tile_begin + t);
  FoldTile out{{tile.key[0], tile.key[1]},
               {half == 0 ? tile.valid[0][0] : tile.valid[1][0],
                half == 0 ? tile.valid[0][1] : tile.valid[1][1]},
               3u};
  if (p.kept != nullptr && out.valid[0] + out.valid[1] > 0)
    out.kept = read_global(p.kept + (job.out_begin + t) * 2 + half);
  return out;
}

// Skip bits and pairs under a rule. Flags of a key block are written by many threads, but all of
// them write the same.
LACUNA_DEVICE void fold_votes(const FoldArgs& p) {
  const QueryRows rows(p);
  unsigned char* kept = shared_memory();
  unsigned char* skipped = kept + kFoldBlocks;
  auto* cells = reinterpret_cast<int64_t*>(skipped + kFoldBlocks);  // by warp
  const int lane = thread_id() & 31, warp = thread_id() >> 5, num_k = p.k_blocks.num_blocks;
  int64_t pairs = 0;
  int first = 0;
  do {
    const int count = min_of(num_k - first, kFoldBlocks);
    for (int i = thread_id(); i < count; i += kFoldThreads) kept[i] = skipped[i] = 0;
    sync_block();
    rows.halves([&](const Job& job, int half, int, int num_rows) {
      LACUNA_NO_UNROLL
      for (int t = thread_id(); t < job.num_tiles; t += kFoldThreads) {
        const FoldTile tile = fold_tile(p, job, half, t);
        LACUNA_UNROLL
        for (int slot = 0; slot < 2; ++slot) {
          if (tile.valid[slot] == 0) continue;
          const bool is_kept = (tile.kept >> slot & 1u) != 0;
          if (first == 0 && is_kept) pairs += static_cast<int64_t>(tile.valid[slot]) * num_rows;
          const int block = block_of(p.k_blocks, rows.call(), tile.key[slot]) - first;
          if (block >= 0 && block < count) (is_kept ? kept : skipped)[block] = 1;
        }
      }
    });
    sync_block();
    const int words = min_of(p.words - first / 32, kFoldBlocks / 32);
    for (int w = warp; p.skip_bits != nullptr && w < words; w += kFoldThreads / 32) {
      const int i = w * 32 + lane;
      const uint32_t bits = ballot(i < count && skipped[i] != 0 && kept[i] == 0);
      if (lane == 0) write_global(p.skip_bits + rows.by_head() * p.words + first / 32 + w, bits);
    }
    sync_block();
    first += kFoldBlocks;
  } while (first < num_k);
  LACUNA_UNROLL
  for (int lanes = 16; lanes > 0; lanes /= 2) pairs += shuffle_xor(pairs, lanes);
  if (lane == 0) cells[warp] = pairs;
  sync_block();
  if (thread_id() != 0) return;
  for (int w = 1; w < kFoldThreads / 32; ++w) pairs += cells[w];
  write_global(p.pairs + rows.by_call(), pairs);
}

LACUNA_DEVICE void fold_pairs(const FoldPairsArgs& p) {
  int64_t sum = 0;
  LACUNA_NO_UNROLL
  for (int i = thread_id(); i < p.q_blocks; i += 32)
    sum += read_global(p.pairs + static_cast<int64_t>(block_id()) * p.q_blocks + i);
  LACUNA_UNROLL
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += shuffle_xor(sum, lanes);
  if (thread_id() == 0) write_global(p.sums + block_id(), sum);
}

// Mean over the block's rows of exp(slot's log-sum-exp - the row's). Each warp owns every eighth
// key block and walks all tiles for it, so that no sum is shared and its order is fixed.
class FoldMass {
 public:
  LACUNA_DEVICE explicit FoldMass(const FoldArgs& p)
      : p_(p),
        rows_(p),
        sums_(reinterpret_cast<float*>(shared_memory())),
        lane_(thread_id() & 31),
        warp_(thread_id() >> 5) {}

  LACUNA_DEVICE void run() {
    const int num_k = p_.k_blocks.num_blocks;
    const int64_t head_row =
        static_cast<int64_t>(read_global(p_.head_ids + rows_.call())) * p_.q_blocks.seq_len;
    float* out = p_.mass + rows_.by_head() * num_k;
    const float share = rows_.size() > 0 ? 1.0f / static_cast<float>(rows_.size()) : 0.0f;
    LACUNA_NO_UNROLL
    for (first_ = 0; first_ < num_k; first_ += kFoldMassBlocks) {
      count_ = min_of(num_k - first_, kFoldMassBlocks);
      for (int i = thread_id(); i < count_; i += kFoldMassThreads) sums_[i] = 0.0f;
      sync_block();
      rows_.halves([&](const Job& job, int half, int row, int num_rows) {
        add(job, half, p_.lse + head_row + row, num_rows);
      });
      sync_block();
      for (int i = thread_id(); i < count_; i += kFoldMassThreads)
        write_global(out + first_ + i, sums_[i] * share);
      sync_block();
    }
  }

 private:
  LACUNA_DEVICE void add(const Job& job, int half, const float* lse, int num_rows) {
    float whole[2];
    LACUNA_UNROLL
    for (int i = 0; i < 2; ++i)
      whole[i] = lane_ + 32 * i < num_rows ? read_global(lse + lane_ + 32 * i) * kLog2E : 0.0f;
    LACUNA_NO_UNROLL
    for (int base = 0; base < job.num_tiles; base += 32) {
      int block[2] = {-1, -1};
      if (base + lane_ < job.num_tiles) {
        const FoldTile tile = fold_tile(p_, job, half, base + lane_);
        LACUNA_UNROLL
        for (int slot = 0; slot < 2; ++slot)
          if (tile.valid[slot] > 0 && (tile.kept >> slot & 1u) != 0)
            block[slot] = mine(block_of(p_.k_blocks, rows_.call(), tile.key[slot]));
      }
      LACUNA_UNROLL
      for (int slot = 0; slot < 2; ++slot)
        for (uint32_t left = ballot(block[slot] >= 0); left != 0;) {
          const int from = highest_bit(left);
          left ^= 1u << from;
          const int64_t at = (job.out_begin + base + from) * 2 + slot;
          const float sum = rows_sum(at * (2 * kHalfRows) + half * kHalfRows, whole, num_rows);
          const int to = shuffle(block[slot], from);
          if (lane_ == 0) sums_[to] += sum;
        }
    }
  }

  // Its place in sums_ if this warp owns it, or -1.
  LACUNA_DEVICE int mine(int block) const {
    const int at = block - first_;
    return at >= 0 && at < count_ && block % (kFoldMassThreads / 32) == warp_ ? at : -1;
  }

  LACUNA_DEVICE float rows_sum(int64_t at, const float (&whole)[2], int num_rows) const {
    float sum = 0.0f;
    LACUNA_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int row = lane_ + 32 * i;
      if (row >= num_rows) continue;
      const float part = read_global(p_.slot_lse + at + row);
      // A row that keeps nothing must not compute inf - inf.
      if (part != minus_infinity()) sum += exp2_approx(part - whole[i]);
    }
    return warp_sum(sum);
  }

  const FoldArgs& p_;
  const QueryRows rows_;
  float* sums_;  // by key block
  const int lane_, warp_;
  int first_ = 0, count_ = 0;  // key blocks at hand
};

LACUNA_DEVICE void fold_mass(const FoldArgs& p) {
  FoldMass(p).run();
}

}  // namespace lacuna::cuda
