// SPDX-License-Identifier: Apache-2.0
// Which tokens and which heads of a forward are this process's, and the way between the two.
//
// Everything but self-attention works on rows, so a process has some tokens with all channels;
// self-attention works on heads, so there it has all tokens of some heads. Two exchanges a layer
// lead from one to the other (DeepSpeed-Ulysses, arXiv 2309.14509). Every method, mask and kernel
// sees whole sequences and knows nothing of it.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "lacuna/core/team.h"
#include "lacuna/core/tensor.h"
#include "lacuna/core/video_grid.h"
#include "lacuna/models/context.h"
#include "lacuna/models/rope.h"

namespace lacuna {

class TokenShare {
 public:
  // Tokens are handed out in whole lines of a frame. `team` null: all tokens and heads; else it
  // must outlive this. Throws Error where there are fewer lines or heads than processes.
  TokenShare(const VideoGrid& grid, int64_t num_heads, Team* team);

  bool whole() const { return team_ == nullptr; }
  int64_t begin() const { return token_begins_[rank_]; }
  int64_t end() const { return token_begins_[rank_ + 1]; }
  int64_t tokens() const { return end() - begin(); }
  int64_t heads() const { return head_begins_[rank_ + 1] - head_begins_[rank_]; }

  // Own rows that are a box of the grid, with that box's rotary tables: at most three.
  struct Box {
    int64_t begin = 0, end = 0;  // rows, from 0
    RopeTables rope;
  };
  std::vector<Box> boxes(const AxisRope& rope) const;

  // rows [tokens(), num_heads * head_dim], contiguous -> [all tokens, heads() * head_dim], in a
  // workspace buffer called `name`. Host memory, as all of what follows.
  TensorView to_heads(Context& ctx, const TensorView& rows, std::string_view name) const;
  // The way back, into `rows`.
  void to_tokens(Context& ctx, const TensorView& heads, const TensorView& rows) const;
  // Own rows of `all` [all tokens, n], contiguous, are filled in: everyone's reach everyone.
  void gather(const TensorView& all) const;

  // Scratch of the above beside a forward's own, in bytes.
  static int64_t scratch_bytes(int64_t tokens, int64_t dim, int64_t patch_values, int ranks,
                               DType compute);

 private:
  // Places of every rank's part in units of `bytes`.
  std::vector<int64_t> places(const std::vector<int64_t>& begins, int64_t bytes) const;
  TensorView packed(Context& ctx, const TensorView& rows) const;
  // The columns of rank r: in rows, and in what packed() gives.
  std::pair<TensorView, TensorView> columns(size_t r, const TensorView& rows,
                                            const TensorView& pack) const;

  VideoGrid grid_;
  int64_t num_heads_;
  Team* team_;
  size_t rank_ = 0;
  std::vector<int64_t> token_begins_, head_begins_;  // [ranks + 1]
};

}  // namespace lacuna
