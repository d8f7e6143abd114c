// SPDX-License-Identifier: Apache-2.0
// Dropped blocks as a second partial attention over mean keys and mean values.
#pragma once

#include <cstdint>
#include <vector>

#include "lacuna/backend/backend.h"
#include "lacuna/core/workspace.h"
#include "lacuna/engine/policy.h"
#include "lacuna/methods/method.h"

namespace lacuna {

// For query row i and dropped key block j of n_j keys with mean key k'_j and mean value v'_j, the
// tail has logits sm_scale q_i.k'_j + ln n_j and values v'_j, and joins the kept part by LSE
// (order 0 of Sol-Attn, arXiv 2607.24027, and of PISA, arXiv
// 2602.01077). pooled_row takes q_i, at one product per dropped block and row; pooled_block takes
// the mean query of the query block and gives all its rows one tail, at one product per dropped
// block pair (the published CPU-sized variant).
//
// Exact where keys are constant within blocks (pooled_row), and where v is constant (both); else
// the tail is too light, by Jensen. Dropped = not in the mask, or every piece skipped by the skip
// rule. For bf16 inputs means are rounded to bf16 and the merged output is rounded a second time.
class Compensator {
 public:
  Compensator(Backend& backend, Workspace& workspace) : backend_(backend), workspace_(workspace) {}

  // Adds the tail to `out`, what backend.attend(params) wrote under `selection`; q, k, v, out as
  // the kernel saw them, in the selection's order. params.lse must have been asked for, and
  // skip_bits with a skip rule. Does nothing when no block was dropped. Returns the (query or mean
  // query, mean key) products, summed over heads.
  int64_t join(Compensation kind, const AttendParams& params, const Selection& selection,
               const TensorView& q, const TensorView& k, const TensorView& v,
               const TensorView& out);

 private:
  // Blocks of the tail; adds their products to `pairs`.
  BlockMask dropped(Compensation kind, const AttendParams& params, const Selection& selection,
                    int64_t& pairs) const;
  // The attend() of the tail, but for its lists.
  AttendParams tail_call(Compensation kind, const AttendParams& params, const Selection& selection,
                         const TensorView& q, const TensorView& k, const TensorView& v);
  TensorView means(const char* name, const TensorView& x, const BlockLayout& layout, DType dtype);

  Backend& backend_;
  Workspace& workspace_;
  std::vector<int32_t> block_of_;  // query block of every row
};

}  // namespace lacuna
