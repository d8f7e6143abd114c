// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cpu/attend_plan.h"

#include <algorithm>

namespace lacuna::cpu {
namespace {

struct Blocks {
  int64_t len;
  int32_t block;
  const int32_t* offsets;  // of this head, or null

  int64_t begin(int32_t b) const {
    return offsets != nullptr ? offsets[b] : std::min<int64_t>(int64_t{b} * block, len);
  }
  int64_t end(int32_t b) const { return begin(b + 1); }
};

const int32_t* head_offsets(const int32_t* offsets, int32_t num_blocks, int32_t call) {
  return offsets == nullptr ? nullptr : offsets + call * (int64_t{num_blocks} + 1);
}

int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

}  // namespace

void HeadPlan::build(const AttendParams& p, int32_t call, bool plain, int32_t key_multiple) {
  pieces.clear();
  first_piece.clear();
  tiles.clear();
  packed_keys = 0;
  Blocks k{p.k_len, p.block_k, head_offsets(p.k_offsets, p.num_k_blocks, call)};
  Blocks q{p.q_len, p.block_q, head_offsets(p.q_offsets, p.num_q_blocks, call)};
  int32_t num_k_blocks = p.num_k_blocks, num_q_blocks = p.num_q_blocks;
  // One block of everything; lengths are at most 2^31 - 1.
  if (plain) {
    k = {p.k_len, static_cast<int32_t>(p.k_len), nullptr};
    q = {p.q_len, static_cast<int32_t>(p.q_len), nullptr};
    num_k_blocks = num_q_blocks = 1;
  }
  for (int32_t b = 0; b < num_k_blocks; ++b) {
    first_piece.push_back(static_cast<int32_t>(pieces.size()));
    for (int64_t key = k.begin(b); key < k.end(b); key += kVoteKeys) {
      const int64_t keys = std::min<int64_t>(kVoteKeys, k.end(b) - key);
      pieces.push_back({key, packed_keys, static_cast<int32_t>(keys), b});
      packed_keys += round_up(keys, key_multiple);
    }
  }
  first_piece.push_back(static_cast<int32_t>(pieces.size()));
  for (int32_t b = 0; b < num_q_blocks; ++b) {
    for (int64_t row = q.begin(b); row < q.end(b); row += kVoteRows) {
      const int64_t rows = std::min<int64_t>(kVoteRows, q.end(b) - row);
      tiles.push_back({row, static_cast<int32_t>(rows), b,
                       static_cast<int32_t>(q.end(b) - q.begin(b)), row == q.begin(b)});
    }
  }
}

PieceCursor::PieceCursor(const AttendParams& p, const HeadPlan& plan, int32_t call, int32_t q_block)
    : first_piece_(plan.first_piece.data()) {
  piece_ = 0;
  if (p.row_begin == nullptr) {
    piece_end_ = static_cast<int32_t>(plan.pieces.size());
  } else {
    const int64_t row = int64_t{call} * p.num_q_blocks + q_block;
    col_ = p.cols + p.row_begin[row];
    col_end_ = p.cols + p.row_begin[row + 1];
  }
  settle();
}

void PieceCursor::next() {
  ++piece_;
  settle();
}

// Moves on to the first listed block that has keys left.
void PieceCursor::settle() {
  while (piece_ >= piece_end_) {
    if (col_ == col_end_) {
      piece_ = kNone;
      return;
    }
    piece_ = first_piece_[*col_];
    piece_end_ = first_piece_[*col_ + 1];
    ++col_;
  }
}

}  // namespace lacuna::cpu
