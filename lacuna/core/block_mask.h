// SPDX-License-Identifier: Apache-2.0
// How tokens are cut into blocks, which (query block, key block) pairs are kept, and in which order
// they are visited.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "lacuna/core/visit_order.h"

namespace lacuna {

// Uniform blocks of `block` tokens (the last may be short), or explicit offsets per head.
struct BlockLayout {
  int64_t seq_len = 0;
  int32_t block = 0;  // 0 with explicit offsets
  int32_t num_blocks = 0;
  std::vector<int32_t> offsets;  // [num_heads, num_blocks + 1], first 0, last seq_len; may repeat

  static BlockLayout uniform(int64_t seq_len, int32_t block);
  // Throws Error unless each row of offsets is non-decreasing from 0 to seq_len.
  static BlockLayout explicit_offsets(int64_t seq_len, int64_t num_heads,
                                      std::vector<int32_t> offsets);

  int64_t begin(int64_t head, int32_t b) const;
  int64_t end(int64_t head, int32_t b) const;
  int64_t size(int64_t head, int32_t b) const { return end(head, b) - begin(head, b); }
};

// One bit per (head, query block, key block). Bits past the last key block are zero.
class BlockMask {
 public:
  BlockMask() = default;
  BlockMask(int64_t num_heads, int32_t num_q_blocks, int32_t num_k_blocks);  // all dropped

  bool empty() const { return words_.empty(); }
  int64_t num_heads() const { return num_heads_; }
  int32_t num_q_blocks() const { return num_q_blocks_; }
  int32_t num_k_blocks() const { return num_k_blocks_; }
  int64_t words_per_row() const { return words_per_row_; }
  // [num_heads, num_q_blocks, words_per_row]: key block b is bit b % 64 of word b / 64.
  const uint64_t* words() const { return words_.data(); }

  bool get(int64_t head, int32_t qb, int32_t kb) const;
  void set(int64_t head, int32_t qb, int32_t kb);
  void clear(int64_t head, int32_t qb, int32_t kb);
  std::span<uint64_t> row(int64_t head, int32_t qb);
  std::span<const uint64_t> row(int64_t head, int32_t qb) const;
  void fill();                                     // keep everything
  void keep_k_blocks(int32_t begin, int32_t end);  // for every head and row (sinks)
  void keep_q_blocks(int32_t begin, int32_t end);  // whole rows
  void copy_head(int64_t head, const BlockMask& from, int64_t from_head);

  BlockMask& operator|=(const BlockMask& other);
  BlockMask& operator&=(const BlockMask& other);
  bool operator==(const BlockMask&) const = default;

  int64_t count(int64_t head) const;  // kept block pairs
  // Kept (query, key) pairs / all pairs, 0..1, exact for ragged and explicit layouts.
  double density(int64_t head, const BlockLayout& q, const BlockLayout& k) const;
  double density(const BlockLayout& q, const BlockLayout& k) const;  // mean over heads
  // FNV-1a over sizes and words: equal masks, equal hash, on any machine.
  uint64_t hash() const;
  // The invariants of this type in one place: no empty row, no bit past the last key block.
  // Throws Error naming head and row.
  void validate() const;

 private:
  int64_t num_heads_ = 0;
  int32_t num_q_blocks_ = 0, num_k_blocks_ = 0;
  int64_t words_per_row_ = 0;
  std::vector<uint64_t> words_;
};

// VisitOrder::coarse_to_fine without the own block, which goes first: strides of halving size, so
// that every prefix covers the keys evenly. Replaces what `order` held by all key blocks.
void coarse_to_fine_order(int32_t num_k_blocks, std::vector<int32_t>& order);
// The key block at the same relative position: equal to q_block for self-attention.
inline int32_t own_key_block(int32_t q_block, int32_t num_q_blocks, int32_t num_k_blocks) {
  return static_cast<int32_t>(int64_t{q_block} * num_k_blocks / num_q_blocks);
}

// CSR of kept key blocks, row = head * num_q_blocks + query block.
struct BlockIndex {
  std::vector<int64_t> row_begin;  // [num_heads * num_q_blocks + 1]
  std::vector<int32_t> cols;       // key blocks in visit order
};

// For code that walks lists. `words` as BlockMask stores them, or null: every block.
BlockIndex compact_blocks(const uint64_t* words, int64_t num_heads, int32_t num_q_blocks,
                          int32_t num_k_blocks, VisitOrder order);
inline BlockIndex compact_blocks(const BlockMask& mask, VisitOrder order) {
  return compact_blocks(mask.words(), mask.num_heads(), mask.num_q_blocks(), mask.num_k_blocks(),
                        order);
}

}  // namespace lacuna
