// SPDX-License-Identifier: Apache-2.0
#include "lacuna/calibrate/probe.h"

#include <array>

#include "lacuna/core/error.h"

namespace lacuna {

namespace {

// The layout of the one head for all `num_heads`.
BlockLayout for_all(const BlockLayout& one, int64_t num_heads) {
  if (one.offsets.empty()) return one;
  BlockLayout all = one;
  all.offsets.clear();
  for (int64_t h = 0; h < num_heads; ++h)
    all.offsets.insert(all.offsets.end(), one.offsets.begin(), one.offsets.end());
  return all;
}

}  // namespace

Selection OneHead::select(const SelectArgs& args, State* state) const {
  const auto num_heads = static_cast<int64_t>(args.head_ids.size());
  LACUNA_CHECK(num_heads == args.q.shape[0] && head_ < num_heads,
               "probe: {} heads asked, expected all {}", num_heads, args.q.shape[0]);
  const std::array<int32_t, 1> only{head_};
  SelectArgs one = args;
  one.head_ids = only;
  Selection picked = host_.select(one, state);
  *density_ = picked.mask.empty() ? 1.0 : picked.mask.density(0, picked.q_layout, picked.k_layout);
  if (picked.mask.empty()) return picked;
  // Any order and layout with every block kept is dense attention; an order of one head serves all.
  Selection all;
  all.q_layout = for_all(picked.q_layout, num_heads);
  all.k_layout = for_all(picked.k_layout, num_heads);
  all.q_order = std::move(picked.q_order);
  all.k_order = std::move(picked.k_order);
  all.mask = BlockMask(num_heads, picked.mask.num_q_blocks(), picked.mask.num_k_blocks());
  BlockMask full(1, picked.mask.num_q_blocks(), picked.mask.num_k_blocks());
  full.fill();
  for (int64_t h = 0; h < num_heads; ++h) all.mask.copy_head(h, h == head_ ? picked.mask : full, 0);
  return all;
}

Selection HeadDensities::select(const SelectArgs& args, State* state) const {
  Selection made = host_.select(args, state);
  for (size_t i = 0; i < args.head_ids.size(); ++i)
    densities_[static_cast<size_t>(args.head_ids[i])] =
        made.mask.empty()
            ? 1.0
            : made.mask.density(static_cast<int64_t>(i), made.q_layout, made.k_layout);
  return made;
}

Selection Observer::select(const SelectArgs& args, State* /*state*/) const {
  if (hooks_.inputs) hooks_.inputs(args);
  Selection selection;
  selection.q_layout = selection.k_layout = BlockLayout::uniform(args.seq_len(), hooks_.block);
  selection.wants_block_mass = static_cast<bool>(hooks_.mass);
  return selection;
}

void Observer::observe(const Observation& seen, State* /*state*/) const {
  hooks_.mass(seen);
}

Policy probe_policy(const Method& method, const Params& params, int layer,
                    Compensation compensate) {
  Rule rule;
  if (layer >= 0) rule.match.layers = {layer};
  rule.plan.method = &method;
  rule.plan.params = params;
  rule.plan.compensate = compensate;
  Policy policy;
  policy.add(std::move(rule));
  return policy;
}

}  // namespace lacuna
