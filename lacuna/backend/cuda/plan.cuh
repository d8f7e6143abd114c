// SPDX-License-Identifier: Apache-2.0
// Key tiles (launch.h) out of the bits of a mask: what plan.h says of a list, made by one warp.
//
// Without a rule blocks ascend and a lane takes one block of 32. Its slots are counted along the
// run that the block belongs to: from the first block on that neighbours with the same halves are
// joined to, or from itself. A lane writes the whole slots that end in its block, and the rest of
// the run if it ends it. Runs start and end where the bits change, 32 blocks at a time.
//
// Under a rule both halves visit their blocks in the order of VisitOrder. For coarse_to_fine they
// differ in their own blocks only, which go first: so the list is the own block of half 0, that of
// half 1, then all others in bit-reversed order, each for the halves that have not had it yet.
//
// Twice: the first pass counts, since short slots go before whole ones, and an odd number of slots
// moves all but the first.
#pragma once

#include "lacuna/backend/cuda/blocks.cuh"
#include "lacuna/backend/cuda/plan_args.h"

namespace lacuna::cuda {

// Sum of the lanes below, and of all.
LACUNA_DEVICE int warp_prefix(int x, int lane, int& total) {
  int sum = x;
  LACUNA_UNROLL
  for (int distance = 1; distance < 32; distance *= 2) {
    const int below = shuffle(sum, (lane - distance) & 31);
    if (lane >= distance) sum += below;
  }
  total = shuffle(sum, 31);
  return sum - x;
}

class ListMaker {
 public:
  LACUNA_DEVICE ListMaker(const PlanArgs& p, const TileList& list)
      : p_(p),
        list_(list),
        lane_(thread_id() & 31),
        two_(list.q_block[1] >= 0),
        row0_(row(list.q_block[0])),
        row1_(row(two_ ? list.q_block[1] : 0)),
        own0_(own(list.q_block[0])),
        own1_(two_ ? own(list.q_block[1]) : -1),
        tiles_(p.tiles + list.tile_begin) {}

  LACUNA_DEVICE void run() {
    int slots;
    if (p_.votes == Votes::none) {
      ascend<false>();
      slots = whole_ + short_;
      odd_ = slots % 2 != 0;
      whole_ = short_, short_ = 0;
      ascend<true>();
    } else {
      visit<false>();
      slots = whole_;
      odd_ = slots % 2 != 0;
      whole_ = 0;
      visit<true>();
    }
    const int tiles = p_.votes == Votes::per_tile ? slots : (slots + 1) / 2;
    LACUNA_NO_UNROLL
    for (int i = lane_; i < list_.num_jobs; i += 32)
      write_global(&p_.jobs[list_.first_job + i].num_tiles, tiles);
  }

 private:
  LACUNA_DEVICE const uint32_t* row(int q_block) const {
    if (p_.mask == nullptr) return nullptr;
    return p_.mask + (static_cast<int64_t>(list_.call) * p_.q_blocks + q_block) * p_.words;
  }
  LACUNA_DEVICE int own(int q_block) const {
    return static_cast<int>(static_cast<int64_t>(q_block) * p_.k_blocks.num_blocks / p_.q_blocks);
  }
  LACUNA_DEVICE int begin(int block) const { return block_begin(p_.k_blocks, list_.call, block); }

  // --- no rule
  LACUNA_DEVICE uint32_t bits(const uint32_t* row, int w) const {
    const int blocks = p_.k_blocks.num_blocks - w * 32;
    if (blocks <= 0) return 0;
    if (p_.mask != nullptr) return read_global(row + w);
    return blocks >= 32 ? ~0u : (1u << blocks) - 1u;
  }

  template <bool kPlace>
  LACUNA_DEVICE void ascend() {
    uint32_t a = bits(row0_, 0), b = two_ ? bits(row1_, 0) : 0;
    uint32_t before_a = 0, before_b = 0;
    int run = 0;  // its first block
    LACUNA_NO_UNROLL
    for (int w = 0; w * 32 < p_.k_blocks.num_blocks; ++w) {
      const uint32_t next_a = bits(row0_, w + 1), next_b = two_ ? bits(row1_, w + 1) : 0;
      uint32_t first = a | b, last = a | b;
      if (p_.join) {
        first &= (a ^ (a << 1 | before_a)) | (b ^ (b << 1 | before_b));
        last &= (a ^ (a >> 1 | next_a << 31)) | (b ^ (b >> 1 | next_b << 31));
      }
      if ((a | b) != 0) blocks<kPlace>(w * 32, a, b, first, last, run);
      if (first != 0) run = w * 32 + highest_bit(first);
      before_a = a >> 31, before_b = b >> 31;
      a = next_a, b = next_b;
    }
  }

  // 32 blocks from `base` on. first, last: where runs start and end; run: the one at `base`.
  template <bool kPlace>
  LACUNA_DEVICE void blocks(int base, uint32_t a, uint32_t b, uint32_t first, uint32_t last,
                            int run) {
    const int halves = static_cast<int>((a >> lane_ & 1u) | (b >> lane_ & 1u) << 1);
    int start = 0, end = 0, done = 0, whole = 0, rest = 0;
    if (halves != 0) {
      const uint32_t starts = first & (~0u >> (31 - lane_));
      start = begin(starts != 0 ? base + highest_bit(starts) : run);
      end = begin(base + lane_ + 1);
      done = (begin(base + lane_) - start) / kSlotKeys;
      whole = (end - start) / kSlotKeys - done;
      if ((last >> lane_ & 1u) != 0) rest = (end - start) % kSlotKeys;
    }
    int total;
    const int before = warp_prefix(whole, lane_, total);
    const uint32_t short_lanes = ballot(rest > 0);
    if (kPlace) {
      LACUNA_NO_UNROLL
      for (int i = 0; i < whole; ++i)
        put(whole_ + before + i, start + (done + i) * kSlotKeys, kSlotKeys, halves);
      if (rest > 0)
        put(short_ + count_bits(short_lanes & ((1u << lane_) - 1u)), end - rest, rest, halves);
    }
    whole_ += total;
    short_ += count_bits(short_lanes);
  }

  // --- rules
  LACUNA_DEVICE bool keeps(const uint32_t* row, int block) const {
    return block < p_.k_blocks.num_blocks &&
           (p_.mask == nullptr || (read_global(row + block / 32) >> (block % 32) & 1u) != 0);
  }
  LACUNA_DEVICE bool keeps1(int block) const { return two_ && keeps(row1_, block); }

  // The block that comes at `place`, and the halves that visit it there.
  LACUNA_DEVICE int entry(int place, int& halves) const {
    int block = place;
    bool zero = true, one = true;  // may they?
    if (p_.order == VisitOrder::coarse_to_fine) {
      if (place < 2) {
        block = place == 0 ? own0_ : own1_;
        zero = place == 0;
        one = (own0_ == own1_) == (place == 0);
      } else {
        block = static_cast<int>(reverse_bits(static_cast<uint32_t>(place - 2)) >>
                                 (32 - p_.order_bits));
        zero = block != own0_;
        one = block != own1_;
      }
    }
    halves = (zero && keeps(row0_, block) ? 1 : 0) | (one && keeps1(block) ? 2 : 0);
    return block;
  }

  template <bool kPlace>
  LACUNA_DEVICE void visit() {
    const int places =
        p_.order == VisitOrder::coarse_to_fine ? (1 << p_.order_bits) + 2 : p_.k_blocks.num_blocks;
    LACUNA_NO_UNROLL
    for (int base = 0; base < places; base += 32) {
      int halves = 0, first = 0, end = 0;
      if (base + lane_ < places) {
        const int block = entry(base + lane_, halves);
        if (halves != 0) first = begin(block), end = begin(block + 1);
      }
      const bool by_tile = p_.votes == Votes::per_tile;
      const int pieces =
          by_tile ? (end - first + kTileKeys - 1) / kTileKeys : (end > first ? 1 : 0);
      int total;
      const int at = whole_ + warp_prefix(pieces, lane_, total);
      if (kPlace && by_tile) {
        LACUNA_NO_UNROLL
        for (int i = 0; i < pieces; ++i) put_piece(at + i, first + i * kTileKeys, end, halves);
      } else if (kPlace && pieces > 0) {
        put(at, first, end - first, halves);
      }
      whole_ += total;
    }
  }

  // --- tiles
  LACUNA_DEVICE void put_slot(KeyTile* tile, int slot, int key, int keys, int halves) {
    write_global(&tile->key[slot], key);
    write_global(&tile->valid[0][slot], static_cast<uint8_t>((halves & 1) != 0 ? keys : 0));
    write_global(&tile->valid[1][slot], static_cast<uint8_t>((halves & 2) != 0 ? keys : 0));
  }
  // The slot-th one of the list. If their number is odd, the first has a tile of its own.
  LACUNA_DEVICE void put(int slot, int key, int keys, int halves) {
    const int at = odd_ && slot > 0 ? slot + 1 : slot;
    put_slot(tiles_ + at / 2, at % 2, key, keys, halves);
    if (odd_ && slot == 0) put_slot(tiles_, 1, key, 0, 0);
  }
  // A tile for keys of a block that ends at `end`.
  LACUNA_DEVICE void put_piece(int tile, int key, int end, int halves) {
    const int keys = min_of(end - key, kTileKeys), first = min_of(keys, kSlotKeys);
    put_slot(tiles_ + tile, 0, key, first, halves);
    put_slot(tiles_ + tile, 1, keys > first ? key + first : key, keys - first, halves);
  }

  const PlanArgs& p_;
  const TileList list_;
  const int lane_;
  const bool two_;  // halves
  const uint32_t *row0_, *row1_;
  const int own0_, own1_;
  KeyTile* tiles_;
  bool odd_ = false;
  int whole_ = 0, short_ = 0;  // next slots
};

LACUNA_DEVICE void make_lists(const PlanArgs& p) {
  const int list = block_id() * (kPlanThreads / 32) + (thread_id() >> 5);
  if (list < p.num_lists) ListMaker(p, read_global(p.lists + list)).run();
}

}  // namespace lacuna::cuda
