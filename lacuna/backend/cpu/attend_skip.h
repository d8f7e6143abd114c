// SPDX-License-Identifier: Apache-2.0
// The vote of a query tile on a key piece: attend_params.h's skip rules in log2 units.
#pragma once

#include <cstdint>

#include "lacuna/backend/cpu/kernel_ops.h"

namespace lacuna::cpu {

class SkipVote {
 public:
  SkipVote() = default;
  // Rule and parameters of one head.
  SkipVote(const AttendParams& params, int32_t call);

  bool active() const { return kind_ != SkipKind::none; }
  // True if every row of the tile agrees to drop the piece (state.mhat); then the recall rule's
  // bound is charged to state.u. Never ask about the first visited piece: it is always kept.
  bool drop(const KernelOps& ops, int32_t rows, int32_t keys, TileRows& state) const;
  // After a kept piece: state.m and state.l have moved by state.alpha.
  void kept(TileRows& state) const;

 private:
  SkipKind kind_ = SkipKind::none;
  float threshold_ = 0.0f;  // log2 units; recall: (1 - r) / r
  float kappa_ = 1.0f;
};

}  // namespace lacuna::cpu
