// SPDX-License-Identifier: Apache-2.0
#include "lacuna/engine/mask_cache.h"

#include <algorithm>
#include <numeric>

#include "lacuna/core/error.h"
#include "lacuna/methods/selection.h"

namespace lacuna {

namespace {

bool same_blocks(const BlockLayout& a, const BlockLayout& b) {
  return a.seq_len == b.seq_len && a.block == b.block && a.num_blocks == b.num_blocks &&
         a.offsets.empty() == b.offsets.empty();
}

void merge_layout(BlockLayout& all, const BlockLayout& fresh, std::span<const int32_t> head_ids) {
  if (all.offsets.empty()) return;
  const int64_t per_head = all.num_blocks + 1;
  for (size_t i = 0; i < head_ids.size(); ++i)
    std::copy_n(fresh.offsets.begin() + static_cast<int64_t>(i) * per_head, per_head,
                all.offsets.begin() + head_ids[i] * per_head);
}

// One row per head, so that heads can differ.
void expand_order(TokenOrder& order, int64_t num_heads, int64_t seq_len) {
  if (order.num_heads == num_heads && !order.empty()) return;
  TokenOrder wide{seq_len, num_heads, {}};
  wide.order.resize(static_cast<size_t>(num_heads * seq_len));
  for (int64_t h = 0; h < num_heads; ++h) {
    const auto row = wide.order.begin() + h * seq_len;
    if (order.empty()) {
      std::iota(row, row + seq_len, 0);
    } else {
      std::copy_n(order.order.begin(), seq_len, row);
    }
  }
  order = std::move(wide);
}

void merge_order(TokenOrder& all, TokenOrder& fresh, std::span<const int32_t> head_ids,
                 int64_t num_heads, int64_t seq_len) {
  const bool shared = all.num_heads <= 1 && fresh.num_heads <= 1;
  if (shared && all.order == fresh.order) return;
  expand_order(all, num_heads, seq_len);
  expand_order(fresh, static_cast<int64_t>(head_ids.size()), seq_len);
  for (size_t i = 0; i < head_ids.size(); ++i)
    std::copy_n(fresh.head(static_cast<int64_t>(i)), seq_len,
                all.order.begin() + head_ids[i] * seq_len);
}

}  // namespace

void MaskCache::merge(Selection fresh, std::span<const int32_t> head_ids, int64_t num_heads,
                      std::string_view who) {
  const bool all = static_cast<int64_t>(head_ids.size()) == num_heads;
  LACUNA_CHECK(all || num_heads == num_heads_, "{}: selected {} of {} heads, expected all at first",
               who, head_ids.size(), num_heads);
  if (all) {
    selection_ = std::move(fresh);
  } else {
    LACUNA_CHECK(same_blocks(fresh.q_layout, selection_.q_layout) &&
                     same_blocks(fresh.k_layout, selection_.k_layout),
                 "{}: {}x{} blocks for some heads, expected {}x{} as for the others", who,
                 fresh.q_layout.num_blocks, fresh.k_layout.num_blocks,
                 selection_.q_layout.num_blocks, selection_.k_layout.num_blocks);
    LACUNA_CHECK(fresh.mask.empty() == selection_.mask.empty(),
                 "{}: {} for some heads, expected {} as for the others", who,
                 fresh.mask.empty() ? "no mask" : "a mask", fresh.mask.empty() ? "a mask" : "none");
    const int64_t seq_len = fresh.q_layout.seq_len;
    merge_layout(selection_.q_layout, fresh.q_layout, head_ids);
    merge_layout(selection_.k_layout, fresh.k_layout, head_ids);
    merge_order(selection_.q_order, fresh.q_order, head_ids, num_heads, seq_len);
    merge_order(selection_.k_order, fresh.k_order, head_ids, num_heads, seq_len);
    merge_order(selection_.row_source, fresh.row_source, head_ids, num_heads, seq_len);
    if (!fresh.mask.empty())
      for (size_t i = 0; i < head_ids.size(); ++i)
        selection_.mask.copy_head(head_ids[i], fresh.mask, static_cast<int64_t>(i));
    selection_.wants_lse = fresh.wants_lse;
    selection_.wants_block_mass = fresh.wants_block_mass;
    selection_.wants_skip_bits = fresh.wants_skip_bits;
  }
  num_heads_ = num_heads;
  measure(head_ids);
}

void drop_blocks(Selection& selection, int64_t num_heads, const uint64_t* skip_bits) {
  BlockMask& mask = selection.mask;
  if (mask.empty()) {
    mask = BlockMask(num_heads, selection.q_layout.num_blocks, selection.k_layout.num_blocks);
    mask.fill();
  }
  for (int64_t h = 0; h < num_heads; ++h)
    for (int32_t qb = 0; qb < mask.num_q_blocks(); ++qb)
      for (uint64_t& word : mask.row(h, qb)) word &= ~*skip_bits++;
}

void MaskCache::drop(const uint64_t* skip_bits, int64_t video_tokens) {
  drop_blocks(selection_, num_heads_, skip_bits);
  keep_text(selection_, video_tokens);
  measure_all();
}

void MaskCache::transfer(const StateIo& io, int64_t num_heads, int64_t video_tokens,
                         int64_t text_tokens) {
  lacuna::transfer(io, selection_, num_heads, video_tokens, text_tokens);
  num_heads_ = num_heads;
  if (io.reading()) measure_all();
}

void MaskCache::measure_all() {
  std::vector<int32_t> all(static_cast<size_t>(num_heads_));
  std::iota(all.begin(), all.end(), 0);
  measure(all);
}

void MaskCache::measure(std::span<const int32_t> head_ids) {
  density_.resize(static_cast<size_t>(num_heads_), 1.0);
  for (int32_t h : head_ids)
    density_[h] =
        dense() ? 1.0 : selection_.mask.density(h, selection_.q_layout, selection_.k_layout);
  hash_ = dense() ? 0 : selection_.mask.hash();
}

double MaskCache::density() const {
  return std::accumulate(density_.begin(), density_.end(), 0.0) /
         static_cast<double>(density_.size());
}

}  // namespace lacuna
