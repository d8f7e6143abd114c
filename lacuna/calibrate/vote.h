// SPDX-License-Identifier: Apache-2.0
// The pieces of CalibAtt (arXiv 2603.05503) that need no model.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "lacuna/core/block_mask.h"

namespace lacuna {

// Share of mass a prompt's mask covers at a step: A + (C - A) e^(-k step / steps), section 2.3.
struct EnergySchedule {
  std::optional<double> floor;  // A; unset: 0.796 + 1.41e-6 * tokens, at most `start`
  double start = 0.99;          // C
  double decay = 16.0;          // k
  double at(int step, int num_steps, int64_t tokens) const;
};

// Bit where votes / num_prompts >= share, section 2.4. A row whose vote leaves nothing keeps its
// diagonal block (the last, past the last) and its most voted one, the lower of equals.
// votes [num_heads, num_q_blocks, num_k_blocks], share in (0, 1]: up to 1 / num_prompts is the
// union of the prompts' masks, 1 the intersection.
BlockMask vote(std::span<const uint8_t> votes, int64_t num_heads, int32_t num_q_blocks,
               int32_t num_k_blocks, int num_prompts, double share);

// Kept key blocks of a row as half-open runs.
struct Interval {
  int32_t begin, end;
  bool operator==(const Interval&) const = default;
};
std::vector<Interval> intervals(const BlockMask& mask, int64_t head, int32_t q_block);
// Keeps gaps of up to `gap` dropped key blocks between two runs of a row, section 2.7.
void merge_intervals(BlockMask& mask, int32_t gap);

// Kept by both / kept by either, of one head.
double mask_iou(const BlockMask& a, const BlockMask& b, int64_t head);
// Groups of steps with masks alike: step i joins the first group whose every member has IoU >= tau
// with it in every head, else it opens one. Every mask then becomes the union of its group's
// (section 2.7). Returns the group of each step.
std::vector<int> share_steps(std::span<BlockMask> masks, double tau);

}  // namespace lacuna
