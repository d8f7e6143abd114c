// SPDX-License-Identifier: Apache-2.0
#include "lacuna/calibrate/vote.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "lacuna/core/error.h"

namespace lacuna {

double EnergySchedule::at(int step, int num_steps, int64_t tokens) const {
  const double low = std::min(start, floor.value_or(0.796 + 1.41e-6 * static_cast<double>(tokens)));
  return low + (start - low) * std::exp(-decay * step / num_steps);
}

BlockMask vote(std::span<const uint8_t> votes, int64_t num_heads, int32_t num_q_blocks,
               int32_t num_k_blocks, int num_prompts, double share) {
  LACUNA_CHECK(static_cast<int64_t>(votes.size()) == num_heads * num_q_blocks * num_k_blocks,
               "vote: {} counts, expected {} heads x {} x {} blocks", votes.size(), num_heads,
               num_q_blocks, num_k_blocks);
  LACUNA_CHECK(share > 0.0 && share <= 1.0, "vote: share {}, expected more than 0 and at most 1",
               share);
  // Rounded so that a share written as a decimal fraction of the prompts means that fraction.
  const double needed = std::max(1.0, std::ceil(share * num_prompts - 1e-9));
  BlockMask mask(num_heads, num_q_blocks, num_k_blocks);
  for (int64_t h = 0; h < num_heads; ++h)
    for (int32_t qb = 0; qb < num_q_blocks; ++qb) {
      const auto row = votes.subspan(static_cast<size_t>((h * num_q_blocks + qb) * num_k_blocks),
                                     static_cast<size_t>(num_k_blocks));
      bool any = false;
      for (int32_t kb = 0; kb < num_k_blocks; ++kb)
        if (row[kb] >= needed) {
          mask.set(h, qb, kb);
          any = true;
        }
      if (any) continue;
      mask.set(h, qb, std::min(qb, num_k_blocks - 1));
      mask.set(h, qb, static_cast<int32_t>(std::max_element(row.begin(), row.end()) - row.begin()));
    }
  return mask;
}

std::vector<Interval> intervals(const BlockMask& mask, int64_t head, int32_t q_block) {
  std::vector<Interval> runs;
  for (int32_t kb = 0; kb < mask.num_k_blocks(); ++kb) {
    if (!mask.get(head, q_block, kb)) continue;
    if (runs.empty() || runs.back().end < kb) runs.push_back({kb, kb});
    runs.back().end = kb + 1;
  }
  return runs;
}

void merge_intervals(BlockMask& mask, int32_t gap) {
  for (int64_t h = 0; h < mask.num_heads(); ++h)
    for (int32_t qb = 0; qb < mask.num_q_blocks(); ++qb) {
      const std::vector<Interval> runs = intervals(mask, h, qb);
      for (size_t i = 1; i < runs.size(); ++i)
        if (runs[i].begin - runs[i - 1].end <= gap)
          for (int32_t kb = runs[i - 1].end; kb < runs[i].begin; ++kb) mask.set(h, qb, kb);
    }
}

double mask_iou(const BlockMask& a, const BlockMask& b, int64_t head) {
  int64_t both = 0, either = 0;
  for (int32_t qb = 0; qb < a.num_q_blocks(); ++qb) {
    const auto x = a.row(head, qb), y = b.row(head, qb);
    for (size_t w = 0; w < x.size(); ++w) {
      both += std::popcount(x[w] & y[w]);
      either += std::popcount(x[w] | y[w]);
    }
  }
  return either == 0 ? 1.0 : static_cast<double>(both) / static_cast<double>(either);
}

std::vector<int> share_steps(std::span<BlockMask> masks, double tau) {
  const auto alike = [&](const BlockMask& a, const BlockMask& b) {
    for (int64_t h = 0; h < a.num_heads(); ++h)
      if (mask_iou(a, b, h) < tau) return false;
    return true;
  };
  std::vector<std::vector<size_t>> groups;
  std::vector<int> group_of;
  for (size_t i = 0; i < masks.size(); ++i) {
    const auto joins = [&](const std::vector<size_t>& group) {
      return std::all_of(group.begin(), group.end(),
                         [&](size_t j) { return alike(masks[i], masks[j]); });
    };
    const auto found = std::find_if(groups.begin(), groups.end(), joins);
    group_of.push_back(static_cast<int>(found - groups.begin()));
    if (found == groups.end()) groups.emplace_back();
    groups[static_cast<size_t>(group_of.back())].push_back(i);
  }
  for (const auto& group : groups) {
    BlockMask all = masks[group.front()];
    for (size_t i : group) all |= masks[i];
    for (size_t i : group) masks[i] = all;
  }
  return group_of;
}

}  // namespace lacuna
