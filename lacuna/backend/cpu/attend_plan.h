// SPDX-License-Identifier: Apache-2.0
// How one head's attention is cut: query tiles, key pieces, and which pieces a tile visits.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "lacuna/backend/attend_params.h"

namespace lacuna::cpu {

struct Piece {
  int64_t key = 0;     // first key
  int64_t packed = 0;  // its row in the packed K and V
  int32_t keys = 0;
  int32_t block = 0;
};

struct Tile {
  int64_t row = 0;  // first query row
  int32_t rows = 0;
  int32_t q_block = 0;
  int32_t block_rows = 0;  // of the whole query block
  bool first_of_block = false;
};

// Rebuilt for every call; keeps its memory between calls.
struct HeadPlan {
  std::vector<Piece> pieces;         // ascending
  std::vector<int32_t> first_piece;  // [blocks + 1]: pieces of a block
  std::vector<Tile> tiles;           // ascending, rows of one query block each
  std::vector<int32_t> order;        // of key blocks, without the own one; empty = ascending
  int64_t packed_keys = 0;           // rows of the packed K and V

  // `call` = call index of the head. plain: no block structure is visible from outside (dense, no
  // skip rule, no per-block output), so tiles and pieces take their full size everywhere.
  // Packed rows of a piece are rounded up to key_multiple.
  void build(const AttendParams& params, int32_t call, bool plain, int32_t key_multiple);
};

// Pieces of one query tile in visit order, straight from the bits of the mask. None of them:
// piece() = kNone.
class PieceCursor {
 public:
  static constexpr int32_t kNone = std::numeric_limits<int32_t>::max();

  PieceCursor() = default;
  PieceCursor(const AttendParams& params, const HeadPlan& plan, int32_t call, int32_t q_block);
  int32_t piece() const { return piece_; }
  void next();

 private:
  void settle();
  int32_t next_block();
  uint64_t word(int32_t w) const;
  bool keeps(int32_t block) const { return word(block / 64) >> (block % 64) & 1; }

  const HeadPlan* plan_ = nullptr;
  const uint64_t* row_ = nullptr;  // of the mask; null = every block
  int32_t num_blocks_ = 0, own_ = 0;
  int32_t at_ = 0;     // the next word, or place in the order; -1 = the own block
  uint64_t rest_ = 0;  // of the word before
  int32_t piece_ = kNone, piece_end_ = kNone;
};

}  // namespace lacuna::cpu
