// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/token_share.h"

#include <algorithm>

#include "lacuna/core/error.h"

namespace lacuna {

TokenShare::TokenShare(const VideoGrid& grid, int64_t num_heads, Team* team)
    : grid_(grid), num_heads_(num_heads), team_(team) {
  const int ranks = team == nullptr ? 1 : team->size();
  const int64_t lines = grid.frames * grid.height;
  LACUNA_CHECK(num_heads >= ranks && lines >= ranks,
               "parallel: {} processes for {} heads and {} lines of tokens, expected at most one "
               "for each",
               ranks, num_heads, lines);
  rank_ = team == nullptr ? 0 : static_cast<size_t>(team->rank());
  token_begins_ = even_shares(lines, ranks);
  for (int64_t& begin : token_begins_) begin *= grid.width;
  head_begins_ = even_shares(num_heads, ranks);
}

std::vector<TokenShare::Box> TokenShare::boxes(const AxisRope& rope) const {
  std::vector<Box> boxes;
  const int64_t last = end() / grid_.width;
  for (int64_t line = begin() / grid_.width; line < last;) {
    const int64_t frame = line / grid_.height, row = line % grid_.height;
    // Whole frames together; of a frame that is not all ours, or ends the share, what is.
    const int64_t frames = row == 0 ? std::max<int64_t>(1, last / grid_.height - frame) : 1;
    const int64_t rows = std::min(grid_.height - row, frames > 1 ? grid_.height : last - line);
    Box box;
    box.begin = line * grid_.width - begin();
    box.rope = rope.tables({frames, rows, grid_.width}, frame, row);
    line += frames * rows;
    box.end = line * grid_.width - begin();
    boxes.push_back(box);
  }
  return boxes;
}

std::vector<int64_t> TokenShare::places(const std::vector<int64_t>& begins, int64_t bytes) const {
  std::vector<int64_t> places(begins);
  for (int64_t& place : places) place *= bytes;
  return places;
}

TensorView TokenShare::packed(Context& ctx, const TensorView& rows) const {
  return ctx.workspace.host("share.pack", rows.dtype, {rows.shape[0] * rows.shape[1]});
}

std::pair<TensorView, TensorView> TokenShare::columns(size_t r, const TensorView& rows,
                                                      const TensorView& pack) const {
  const int64_t head_dim = rows.shape[1] / num_heads_;
  const int64_t begin = head_begins_[r] * head_dim, end = head_begins_[r + 1] * head_dim;
  return {rows.narrow(1, begin, end - begin),
          pack.slice(begin * tokens(), end * tokens()).reshape({tokens(), end - begin})};
}

TensorView TokenShare::to_heads(Context& ctx, const TensorView& rows, std::string_view name) const {
  const TensorView pack = packed(ctx, rows);
  for (size_t r = 0; r + 1 < head_begins_.size(); ++r) {
    const auto [own, sent] = columns(r, rows, pack);
    ctx.backend.copy(own, sent);
  }
  const int64_t head_bytes = storage_bytes(rows.dtype, rows.shape[1] / num_heads_);
  const int64_t own_channels = heads() * (rows.shape[1] / num_heads_);
  const TensorView all = ctx.workspace.host(name, rows.dtype, {token_begins_.back(), own_channels});
  team_->all_to_all(static_cast<const std::byte*>(pack.data),
                    places(head_begins_, tokens() * head_bytes), static_cast<std::byte*>(all.data),
                    places(token_begins_, heads() * head_bytes));
  return all;
}

void TokenShare::to_tokens(Context& ctx, const TensorView& heads, const TensorView& rows) const {
  const TensorView pack = packed(ctx, rows);
  const int64_t head_bytes = storage_bytes(rows.dtype, rows.shape[1] / num_heads_);
  team_->all_to_all(
      static_cast<const std::byte*>(heads.data), places(token_begins_, this->heads() * head_bytes),
      static_cast<std::byte*>(pack.data), places(head_begins_, tokens() * head_bytes));
  for (size_t r = 0; r + 1 < head_begins_.size(); ++r) {
    const auto [own, received] = columns(r, rows, pack);
    ctx.backend.copy(received, own);
  }
}

void TokenShare::gather(const TensorView& all) const {
  team_->all_gather(static_cast<std::byte*>(all.data),
                    places(token_begins_, storage_bytes(all.dtype, all.shape[1])));
}

int64_t TokenShare::scratch_bytes(int64_t tokens, int64_t dim, int64_t patch_values, int ranks,
                                  DType compute) {
  if (ranks == 1) return 0;
  // One packed matrix, then q, k, v and the output of own heads; latents as rows of all tokens.
  return storage_bytes(compute, 5 * tokens * dim / ranks) + 4 * tokens * patch_values;
}

}  // namespace lacuna
