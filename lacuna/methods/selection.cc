// SPDX-License-Identifier: Apache-2.0
#include "lacuna/methods/selection.h"

#include "lacuna/core/error.h"

namespace lacuna {

namespace {

// First block of `head` that holds a token at or past `token`; num_blocks when there is none.
int32_t first_block_past(const BlockLayout& layout, int64_t head, int64_t token) {
  int32_t b = layout.num_blocks;
  while (b > 0 && layout.end(head, b - 1) > token) --b;
  return b;
}

BlockLayout pick_layout(const BlockLayout& all, std::span<const int32_t> heads) {
  if (all.offsets.empty()) return all;
  BlockLayout picked = all;
  picked.offsets.clear();
  const int64_t per_head = all.num_blocks + 1;
  for (int32_t h : heads) {
    const auto row = all.offsets.begin() + h * per_head;
    picked.offsets.insert(picked.offsets.end(), row, row + per_head);
  }
  return picked;
}

TokenOrder pick_order(const TokenOrder& all, std::span<const int32_t> heads) {
  if (all.empty() || all.num_heads == 1) return all;
  TokenOrder picked{all.seq_len, static_cast<int64_t>(heads.size()), {}};
  for (int32_t h : heads)
    picked.order.insert(picked.order.end(), all.head(h), all.head(h) + all.seq_len);
  return picked;
}

void check_layout(const BlockLayout& layout, std::string_view who, int64_t num_heads,
                  int64_t seq_len) {
  LACUNA_CHECK(layout.seq_len == seq_len && layout.num_blocks > 0,
               "{}: selection has {} blocks over {} tokens, expected blocks over {}", who,
               layout.num_blocks, layout.seq_len, seq_len);
  const int64_t wanted = num_heads * (layout.num_blocks + 1);
  LACUNA_CHECK(layout.offsets.empty() ? layout.block > 0
                                      : static_cast<int64_t>(layout.offsets.size()) == wanted,
               "{}: selection has {} block offsets, expected {}", who, layout.offsets.size(),
               wanted);
}

void check_order(const TokenOrder& order, std::string_view who, int64_t num_heads,
                 int64_t video_tokens, int64_t seq_len) {
  if (order.empty()) return;
  LACUNA_CHECK(order.seq_len == seq_len && (order.num_heads == 1 || order.num_heads == num_heads),
               "{}: token order of {} x {}, expected {} or 1 x {}", who, order.num_heads,
               order.seq_len, num_heads, seq_len);
  order.validate();
  for (int64_t h = 0; h < order.num_heads; ++h)
    for (int64_t p = video_tokens; p < seq_len; ++p)
      LACUNA_CHECK(order.head(h)[p] == p,
                   "{}: token order moves text token {}, expected it in place", who, p);
}

void check_row_source(const TokenOrder& source, std::string_view who, int64_t num_heads,
                      int64_t video_tokens, int64_t seq_len) {
  if (source.empty()) return;
  LACUNA_CHECK(
      source.seq_len == seq_len && (source.num_heads == 1 || source.num_heads == num_heads),
      "{}: row sources of {} x {}, expected {} or 1 x {}", who, source.num_heads, source.seq_len,
      num_heads, seq_len);
  for (int64_t h = 0; h < source.num_heads; ++h)
    for (int64_t t = 0; t < seq_len; ++t) {
      const int32_t from = source.head(h)[t];
      LACUNA_CHECK(from >= 0 && from < seq_len && source.head(h)[from] == from &&
                       (t < video_tokens || from == t),
                   "{}: token {} takes the row of {}, expected a token that keeps its own", who, t,
                   from);
    }
}

// Bounds of a saved mask's sizes: their product fits 64 bits.
constexpr int64_t kMaxHeads = 1 << 16, kMaxBlocks = 1 << 24;

void transfer_layout(const StateIo& io, BlockLayout& layout, int64_t num_heads, int64_t seq_len) {
  int64_t block = layout.block;
  io.number("block", block, 0, INT32_MAX);
  io.values("offsets", layout.offsets);
  if (!io.reading()) return;
  LACUNA_CHECK((block > 0) == layout.offsets.empty(),
               "state: blocks of {} tokens and {} offsets, expected one of the two", block,
               layout.offsets.size());
  layout = block > 0 ? BlockLayout::uniform(seq_len, static_cast<int32_t>(block))
                     : BlockLayout::explicit_offsets(seq_len, num_heads, std::move(layout.offsets));
}

// One row for all heads, or one each.
void transfer_order(const StateIo& io, TokenOrder& order, int64_t seq_len) {
  io.values("order", order.order);
  if (!io.reading()) return;
  const auto count = static_cast<int64_t>(order.order.size());
  LACUNA_CHECK(count % seq_len == 0, "state: an order of {} tokens, expected a multiple of {}",
               count, seq_len);
  order.seq_len = count > 0 ? seq_len : 0;
  order.num_heads = count / seq_len;
}

// No empty row but where every token of the query block copies another's output.
void check_rows(const Selection& selection) {
  const TokenOrder& source = selection.row_source;
  if (source.empty()) return selection.mask.validate();
  BlockMask mask = selection.mask;
  for (int64_t h = 0; h < mask.num_heads(); ++h)
    for (int32_t qb = 0; qb < mask.num_q_blocks(); ++qb) {
      bool copied = true;
      for (int64_t p = selection.q_layout.begin(h, qb); p < selection.q_layout.end(h, qb); ++p) {
        const auto token = selection.q_order.empty() ? p : selection.q_order.head(h)[p];
        copied = copied && source.head(h)[token] != token;
      }
      if (copied) mask.set(h, qb, 0);
    }
  mask.validate();
}

}  // namespace

void keep_text(Selection& selection, int64_t video_tokens) {
  BlockMask& mask = selection.mask;
  for (int64_t h = 0; h < mask.num_heads(); ++h) {
    const int32_t text_q = first_block_past(selection.q_layout, h, video_tokens);
    const int32_t text_k = first_block_past(selection.k_layout, h, video_tokens);
    for (int32_t qb = 0; qb < mask.num_q_blocks(); ++qb)
      for (int32_t kb = qb >= text_q ? 0 : text_k; kb < mask.num_k_blocks(); ++kb)
        mask.set(h, qb, kb);
  }
}

void append_text(TokenOrder& order, int64_t text_tokens) {
  if (order.empty() || text_tokens == 0) return;
  const int64_t video = order.seq_len;
  TokenOrder longer{video + text_tokens, order.num_heads, {}};
  longer.order.reserve(static_cast<size_t>(longer.num_heads * longer.seq_len));
  for (int64_t h = 0; h < order.num_heads; ++h) {
    longer.order.insert(longer.order.end(), order.head(h), order.head(h) + video);
    for (int64_t t = video; t < longer.seq_len; ++t)
      longer.order.push_back(static_cast<int32_t>(t));
  }
  order = std::move(longer);
}

Selection pick_heads(const Selection& all, std::span<const int32_t> heads) {
  Selection picked;
  picked.q_layout = pick_layout(all.q_layout, heads);
  picked.k_layout = pick_layout(all.k_layout, heads);
  picked.q_order = pick_order(all.q_order, heads);
  picked.k_order = pick_order(all.k_order, heads);
  picked.row_source = pick_order(all.row_source, heads);
  picked.wants_lse = all.wants_lse;
  picked.wants_block_mass = all.wants_block_mass;
  picked.wants_skip_bits = all.wants_skip_bits;
  picked.provisional = all.provisional;
  if (all.mask.empty()) return picked;
  picked.mask = BlockMask(static_cast<int64_t>(heads.size()), all.mask.num_q_blocks(),
                          all.mask.num_k_blocks());
  for (size_t i = 0; i < heads.size(); ++i) {
    LACUNA_CHECK(heads[i] >= 0 && heads[i] < all.mask.num_heads(),
                 "selection: head {}, expected 0 to {}", heads[i], all.mask.num_heads() - 1);
    picked.mask.copy_head(static_cast<int64_t>(i), all.mask, heads[i]);
  }
  return picked;
}

void check_selection(const Selection& selection, std::string_view who, int64_t num_heads,
                     int64_t video_tokens, int64_t text_tokens) {
  const int64_t seq_len = video_tokens + text_tokens;
  check_layout(selection.q_layout, who, num_heads, seq_len);
  check_layout(selection.k_layout, who, num_heads, seq_len);
  check_order(selection.q_order, who, num_heads, video_tokens, seq_len);
  check_order(selection.k_order, who, num_heads, video_tokens, seq_len);
  check_row_source(selection.row_source, who, num_heads, video_tokens, seq_len);
  const BlockMask& mask = selection.mask;
  LACUNA_CHECK(!selection.provisional || mask.empty(),
               "{}: a provisional selection with a mask, expected none", who);
  if (mask.empty()) return;
  LACUNA_CHECK(mask.num_heads() == num_heads &&
                   mask.num_q_blocks() == selection.q_layout.num_blocks &&
                   mask.num_k_blocks() == selection.k_layout.num_blocks,
               "{}: mask of {} heads, {}x{} blocks, expected {} heads, {}x{} blocks", who,
               mask.num_heads(), mask.num_q_blocks(), mask.num_k_blocks(), num_heads,
               selection.q_layout.num_blocks, selection.k_layout.num_blocks);
  check_rows(selection);
  if (text_tokens == 0) return;
  for (int64_t h = 0; h < num_heads; ++h) {
    const int32_t text_q = first_block_past(selection.q_layout, h, video_tokens);
    const int32_t text_k = first_block_past(selection.k_layout, h, video_tokens);
    for (int32_t qb = 0; qb < mask.num_q_blocks(); ++qb)
      for (int32_t kb = qb >= text_q ? 0 : text_k; kb < mask.num_k_blocks(); ++kb)
        LACUNA_CHECK(mask.get(h, qb, kb), "{}: head {} drops text block pair ({}, {})", who, h, qb,
                     kb);
  }
}

int64_t mask_bytes(int64_t num_heads, int64_t num_q_blocks, int64_t num_k_blocks) {
  return num_heads * num_q_blocks * ((num_k_blocks + 63) / 64) *
         static_cast<int64_t>(sizeof(uint64_t));
}

int64_t order_bytes(int64_t rows, int64_t seq_len) {
  return rows * seq_len * static_cast<int64_t>(sizeof(int32_t));
}

int64_t selection_bytes(const Selection& s) {
  const auto bytes = [](const std::vector<int32_t>& values) {
    return static_cast<int64_t>(values.size() * sizeof(int32_t));
  };
  return bytes(s.q_layout.offsets) + bytes(s.k_layout.offsets) + bytes(s.q_order.order) +
         bytes(s.k_order.order) + bytes(s.row_source.order) +
         mask_bytes(s.mask.num_heads(), s.mask.num_q_blocks(), s.mask.num_k_blocks());
}

void transfer(const StateIo& io, BlockMask& mask) {
  int64_t heads = mask.num_heads(), rows = mask.num_q_blocks(), columns = mask.num_k_blocks();
  io.number("heads", heads, 0, kMaxHeads);
  io.number("rows", rows, 0, kMaxBlocks);
  io.number("columns", columns, 0, kMaxBlocks);
  const int64_t count = heads * rows * ((columns + 63) / 64);
  std::vector<uint64_t> words;
  if (!io.reading()) words.assign(mask.words(), mask.words() + count);
  io.values("words", words);
  if (!io.reading()) return;
  LACUNA_CHECK(static_cast<int64_t>(words.size()) == count,
               "state: a mask of {} words, expected {} for {} heads, {}x{} blocks", words.size(),
               count, heads, rows, columns);
  mask = {};
  if (count == 0) return;
  mask = BlockMask(heads, static_cast<int32_t>(rows), static_cast<int32_t>(columns));
  std::copy(words.begin(), words.end(), mask.row(0, 0).data());
}

void transfer(const StateIo& io, Selection& s, int64_t num_heads, int64_t video_tokens,
              int64_t text_tokens) {
  const int64_t seq_len = video_tokens + text_tokens;
  transfer_layout(io.in("q"), s.q_layout, num_heads, seq_len);
  transfer_layout(io.in("k"), s.k_layout, num_heads, seq_len);
  transfer_order(io.in("q_order"), s.q_order, seq_len);
  transfer_order(io.in("k_order"), s.k_order, seq_len);
  transfer_order(io.in("row_source"), s.row_source, seq_len);
  transfer(io.in("mask"), s.mask);
  io.flag("wants_lse", s.wants_lse);
  io.flag("wants_block_mass", s.wants_block_mass);
  io.flag("wants_skip_bits", s.wants_skip_bits);
  io.flag("provisional", s.provisional);
  if (io.reading()) check_selection(s, "state", num_heads, video_tokens, text_tokens);
}

}  // namespace lacuna
