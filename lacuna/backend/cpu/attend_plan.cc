// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cpu/attend_plan.h"

#include <algorithm>
#include <bit>

#include "lacuna/core/block_mask.h"

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
  order.clear();
  if (p.skip != SkipKind::none && p.order == VisitOrder::coarse_to_fine)
    coarse_to_fine_order(p.num_k_blocks, order);
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
    : plan_(&plan) {
  if (p.mask == nullptr && plan.order.empty()) {
    piece_ = 0;
    piece_end_ = static_cast<int32_t>(plan.pieces.size());
  } else {
    const int64_t words = (int64_t{p.num_k_blocks} + 63) / 64;
    if (p.mask != nullptr) row_ = p.mask + (int64_t{call} * p.num_q_blocks + q_block) * words;
    num_blocks_ = p.num_k_blocks;
    own_ = own_key_block(q_block, p.num_q_blocks, num_blocks_);
    at_ = plan.order.empty() ? 0 : -1;
    piece_ = piece_end_ = 0;
  }
  settle();
}

void PieceCursor::next() {
  ++piece_;
  settle();
}

// Moves on to the first kept block that has keys left.
void PieceCursor::settle() {
  while (piece_ >= piece_end_) {
    const int32_t block = next_block();
    if (block < 0) {
      piece_ = piece_end_ = kNone;
      return;
    }
    piece_ = plan_->first_piece[block];
    piece_end_ = plan_->first_piece[block + 1];
  }
}

uint64_t PieceCursor::word(int32_t w) const {
  return row_ != nullptr ? row_[w] : ~uint64_t{0};
}

// -1 = none left.
int32_t PieceCursor::next_block() {
  if (plan_->order.empty()) {
    const int32_t words = (num_blocks_ + 63) / 64;
    while (rest_ == 0) {
      if (at_ >= words) return -1;
      rest_ = word(at_++);
    }
    const int32_t block = (at_ - 1) * 64 + std::countr_zero(rest_);
    rest_ &= rest_ - 1;
    return block;
  }
  if (at_ < 0) {
    ++at_;
    if (num_blocks_ > 0 && keeps(own_)) return own_;
  }
  while (at_ < static_cast<int32_t>(plan_->order.size())) {
    const int32_t block = plan_->order[at_++];
    if (block != own_ && keeps(block)) return block;
  }
  return -1;
}

}  // namespace lacuna::cpu
