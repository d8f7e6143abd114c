// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/block_mask.h"

#include <algorithm>
#include <bit>
#include <numeric>

#include "lacuna/core/error.h"

namespace lacuna {

BlockLayout BlockLayout::uniform(int64_t seq_len, int32_t block) {
  LACUNA_CHECK(seq_len >= 0 && seq_len <= INT32_MAX,
               "block layout: seq_len {}, expected 0 to 2^31-1", seq_len);
  LACUNA_CHECK(block > 0, "block layout: block {}, expected 1 or more", block);
  BlockLayout layout;
  layout.seq_len = seq_len;
  layout.block = block;
  layout.num_blocks = static_cast<int32_t>((seq_len + block - 1) / block);
  return layout;
}

BlockLayout BlockLayout::explicit_offsets(int64_t seq_len, int64_t num_heads,
                                          std::vector<int32_t> offsets) {
  LACUNA_CHECK(num_heads > 0 && !offsets.empty() && offsets.size() % num_heads == 0 &&
                   offsets.size() / num_heads >= 2,
               "block layout: {} offsets for {} heads, expected an equal number of 2 or more each",
               offsets.size(), num_heads);
  const size_t per_head = offsets.size() / num_heads;
  for (int64_t h = 0; h < num_heads; ++h) {
    const auto row = std::span(offsets).subspan(h * per_head, per_head);
    LACUNA_CHECK(
        row.front() == 0 && row.back() == seq_len && std::is_sorted(row.begin(), row.end()),
        "block layout: offsets of head {}, expected to rise from 0 to {}", h, seq_len);
  }
  BlockLayout layout;
  layout.seq_len = seq_len;
  layout.num_blocks = static_cast<int32_t>(per_head - 1);
  layout.offsets = std::move(offsets);
  return layout;
}

int64_t BlockLayout::begin(int64_t head, int32_t b) const {
  if (offsets.empty()) return std::min<int64_t>(int64_t{b} * block, seq_len);
  return offsets[head * (num_blocks + 1) + b];
}

int64_t BlockLayout::end(int64_t head, int32_t b) const {
  return begin(head, b + 1);
}

BlockMask::BlockMask(int64_t num_heads, int32_t num_q_blocks, int32_t num_k_blocks)
    : num_heads_(num_heads),
      num_q_blocks_(num_q_blocks),
      num_k_blocks_(num_k_blocks),
      words_per_row_((int64_t{num_k_blocks} + 63) / 64),
      words_(static_cast<size_t>(num_heads * num_q_blocks * words_per_row_)) {}

std::span<uint64_t> BlockMask::row(int64_t head, int32_t qb) {
  LACUNA_DCHECK(head >= 0 && head < num_heads_ && qb >= 0 && qb < num_q_blocks_,
                "block mask: row ({}, {}) out of range", head, qb);
  return {words_.data() + (head * num_q_blocks_ + qb) * words_per_row_,
          static_cast<size_t>(words_per_row_)};
}

std::span<const uint64_t> BlockMask::row(int64_t head, int32_t qb) const {
  return const_cast<BlockMask*>(this)->row(head, qb);
}

bool BlockMask::get(int64_t head, int32_t qb, int32_t kb) const {
  return (row(head, qb)[kb / 64] >> (kb % 64)) & 1;
}
void BlockMask::set(int64_t head, int32_t qb, int32_t kb) {
  row(head, qb)[kb / 64] |= uint64_t{1} << (kb % 64);
}
void BlockMask::clear(int64_t head, int32_t qb, int32_t kb) {
  row(head, qb)[kb / 64] &= ~(uint64_t{1} << (kb % 64));
}

void BlockMask::fill() {
  keep_k_blocks(0, num_k_blocks_);
}

void BlockMask::keep_k_blocks(int32_t begin, int32_t end) {
  for (int64_t h = 0; h < num_heads_; ++h)
    for (int32_t qb = 0; qb < num_q_blocks_; ++qb)
      for (int32_t kb = std::max(begin, 0); kb < std::min(end, num_k_blocks_); ++kb) set(h, qb, kb);
}

void BlockMask::keep_q_blocks(int32_t begin, int32_t end) {
  for (int64_t h = 0; h < num_heads_; ++h)
    for (int32_t qb = std::max(begin, 0); qb < std::min(end, num_q_blocks_); ++qb)
      for (int32_t kb = 0; kb < num_k_blocks_; ++kb) set(h, qb, kb);
}

void BlockMask::copy_head(int64_t head, const BlockMask& from, int64_t from_head) {
  LACUNA_CHECK(num_q_blocks_ == from.num_q_blocks_ && num_k_blocks_ == from.num_k_blocks_,
               "block mask: copy from {}x{} blocks, expected {}x{}", from.num_q_blocks_,
               from.num_k_blocks_, num_q_blocks_, num_k_blocks_);
  const int64_t words = num_q_blocks_ * words_per_row_;
  std::copy_n(from.words_.begin() + from_head * words, words, words_.begin() + head * words);
}

BlockMask& BlockMask::operator|=(const BlockMask& other) {
  LACUNA_CHECK(words_.size() == other.words_.size(), "block mask: union of different sizes");
  for (size_t i = 0; i < words_.size(); ++i) words_[i] |= other.words_[i];
  return *this;
}

BlockMask& BlockMask::operator&=(const BlockMask& other) {
  LACUNA_CHECK(words_.size() == other.words_.size(), "block mask: intersection of different sizes");
  for (size_t i = 0; i < words_.size(); ++i) words_[i] &= other.words_[i];
  return *this;
}

int64_t BlockMask::count(int64_t head) const {
  int64_t total = 0;
  for (int32_t qb = 0; qb < num_q_blocks_; ++qb)
    for (uint64_t word : row(head, qb)) total += std::popcount(word);
  return total;
}

double BlockMask::density(int64_t head, const BlockLayout& q, const BlockLayout& k) const {
  LACUNA_CHECK(q.num_blocks == num_q_blocks_ && k.num_blocks == num_k_blocks_,
               "block mask: {}x{} blocks, layouts have {}x{}", num_q_blocks_, num_k_blocks_,
               q.num_blocks, k.num_blocks);
  int64_t pairs = 0;
  for (int32_t qb = 0; qb < num_q_blocks_; ++qb) {
    int64_t keys = 0;
    for (int32_t w = 0; w < words_per_row_; ++w) {
      uint64_t rest = row(head, qb)[static_cast<size_t>(w)];
      if (k.offsets.empty()) {
        keys += int64_t{k.block} * std::popcount(rest);
      } else {
        for (; rest != 0; rest &= rest - 1) keys += k.size(head, w * 64 + std::countr_zero(rest));
      }
    }
    if (k.offsets.empty() && num_k_blocks_ > 0 && get(head, qb, num_k_blocks_ - 1))
      keys -= k.block - k.size(head, num_k_blocks_ - 1);
    pairs += keys * q.size(head, qb);
  }
  return static_cast<double>(pairs) / (static_cast<double>(q.seq_len) * k.seq_len);
}

double BlockMask::density(const BlockLayout& q, const BlockLayout& k) const {
  double sum = 0.0;
  for (int64_t h = 0; h < num_heads_; ++h) sum += density(h, q, k);
  return sum / num_heads_;
}

uint64_t BlockMask::hash() const {
  uint64_t h = 0xcbf29ce484222325ull;
  const auto mix = [&h](uint64_t word) {
    for (int i = 0; i < 8; ++i) h = (h ^ ((word >> (8 * i)) & 0xff)) * 0x100000001b3ull;
  };
  mix(static_cast<uint64_t>(num_heads_));
  mix(static_cast<uint64_t>(num_q_blocks_));
  mix(static_cast<uint64_t>(num_k_blocks_));
  for (uint64_t word : words_) mix(word);
  return h;
}

void BlockMask::validate() const {
  for (int64_t h = 0; h < num_heads_; ++h)
    for (int32_t qb = 0; qb < num_q_blocks_; ++qb) {
      const auto words = row(h, qb);
      LACUNA_CHECK(std::any_of(words.begin(), words.end(), [](uint64_t w) { return w != 0; }),
                   "block mask: head {} query block {} keeps nothing", h, qb);
      LACUNA_CHECK(num_k_blocks_ % 64 == 0 || words.back() >> (num_k_blocks_ % 64) == 0,
                   "block mask: head {} query block {} has bits past key block {}", h, qb,
                   num_k_blocks_ - 1);
    }
}

void coarse_to_fine_order(int32_t num_k_blocks, std::vector<int32_t>& order) {
  order.clear();
  const int bits = std::bit_width(static_cast<uint32_t>(std::max(num_k_blocks - 1, 1)));
  for (uint32_t i = 0; i < (1u << bits); ++i) {
    uint32_t reversed = 0;
    for (int b = 0; b < bits; ++b) reversed |= ((i >> b) & 1u) << (bits - 1 - b);
    if (reversed < static_cast<uint32_t>(num_k_blocks))
      order.push_back(static_cast<int32_t>(reversed));
  }
}

BlockIndex compact_blocks(const uint64_t* words, int64_t num_heads, int32_t num_q_blocks,
                          int32_t num_k_blocks, VisitOrder visit) {
  const int64_t words_per_row = (int64_t{num_k_blocks} + 63) / 64;
  std::vector<int32_t> order;
  if (visit == VisitOrder::ascending) {
    order.resize(static_cast<size_t>(num_k_blocks));
    std::iota(order.begin(), order.end(), 0);
  } else {
    coarse_to_fine_order(num_k_blocks, order);
  }
  BlockIndex index;
  index.row_begin.reserve(static_cast<size_t>(num_heads * num_q_blocks + 1));
  index.row_begin.push_back(0);
  for (int64_t row = 0; row < num_heads * num_q_blocks; ++row) {
    const auto add = [&](int32_t kb) {
      if (words == nullptr || (words[row * words_per_row + kb / 64] >> (kb % 64) & 1) != 0)
        index.cols.push_back(kb);
    };
    const int32_t own =
        visit == VisitOrder::ascending
            ? -1
            : own_key_block(static_cast<int32_t>(row % num_q_blocks), num_q_blocks, num_k_blocks);
    if (own >= 0 && num_k_blocks > 0) add(own);
    for (const int32_t kb : order)
      if (kb != own) add(kb);
    index.row_begin.push_back(static_cast<int64_t>(index.cols.size()));
  }
  return index;
}

}  // namespace lacuna
