// SPDX-License-Identifier: Apache-2.0
// What every method does with a Selection: keep text, pick heads, prove the invariants.
#pragma once

#include <cstdint>
#include <span>

#include "lacuna/methods/method.h"

namespace lacuna {

// Keeps whole rows and columns of every block that holds a token at or past `video_tokens`.
// The selection's mask must be allocated and its orders must leave those tokens last.
void keep_text(Selection& selection, int64_t video_tokens);

// Adds `text_tokens` tokens at the end of every head's order, where raster order has them.
void append_text(TokenOrder& order, int64_t text_tokens);

// Layouts, mask and orders of `heads` out of a selection that holds all heads.
Selection pick_heads(const Selection& all, std::span<const int32_t> heads);

// The invariants of Selection in one place. Throws Error naming `who` unless layouts cover
// video_tokens + text_tokens, mask sizes equal layouts and `num_heads`, no row is empty, orders are
// permutations that leave text tokens last, and rows and columns of text are kept.
void check_selection(const Selection& selection, std::string_view who, int64_t num_heads,
                     int64_t video_tokens, int64_t text_tokens);

// For Method::held_bytes: a mask, one order for each of `rows` heads, and a whole selection.
int64_t mask_bytes(int64_t num_heads, int64_t num_q_blocks, int64_t num_k_blocks);
int64_t order_bytes(int64_t rows, int64_t seq_len);
int64_t selection_bytes(const Selection& selection);

// Saves or restores a mask of any sizes, which the caller checks. Empty stays empty.
void transfer(const StateIo& io, BlockMask& mask);
// The same of a selection of all heads; one that is restored passed check_selection.
void transfer(const StateIo& io, Selection& selection, int64_t num_heads, int64_t video_tokens,
              int64_t text_tokens);

}  // namespace lacuna
