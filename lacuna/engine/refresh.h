// SPDX-License-Identifier: Apache-2.0
// Which heads of a site select again.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "lacuna/backend/backend.h"
#include "lacuna/core/site.h"
#include "lacuna/core/state_io.h"
#include "lacuna/core/team.h"
#include "lacuna/core/workspace.h"
#include "lacuna/engine/policy.h"

namespace lacuna {

// Sums of |a - b|, and of |b|: the two halves of a relative L1 distance.
struct L1Distance {
  double difference = 0.0, norm = 0.0;
};
L1Distance l1_distance(std::span<const float> a, std::span<const float> b);

// What the anchors of one site take, below.
int64_t anchor_bytes(const Refresh& rule, const SiteSizes& sizes);

// State of one (layer, branch, expert). Source: HASTE Temporal Mask Reuse (arXiv 2605.14513, Eq. 5
// and Algorithm 1).
//
// drift: with means q', k' over tokens now and qa, ka at the head's last selection,
//   d = |q' - qa|_1 + |k' - ka|_1                           relative = 0, pool = 0: as published
//   d = |q' - qa|_1 / |qa|_1 + |k' - ka|_1 / |ka|_1         relative = 1 (default)
// d <= delta reuses, d > delta selects. Anchors move only when a head selects, so slow drift adds
// up. Layer gate, once every head has a mask: share of selecting heads below gate_low -> none
// selects, above gate_high -> all select; at the bounds nothing changes.
//
// Deviations: relative drift, because the published bound (30) is in units of the model's q and k
// and does not transfer; pool > 0 keeps one mean per `pool` tokens and sums their distances, so
// that opposite moves of different tokens do not cancel. Means are of the q and k the method sees
// (after norm and RoPE), which the paper leaves open.
//
// carry (LiteAttention, arXiv 2511.11062): a head selects every `retest` steps
// and in between keeps what the skip rule kept; MaskCache::drop takes blocks out. Deviations: the
// step that marks a block already skips it, and marks are tested again unless retest = 0, so that a
// wrong one can heal.
class RefreshState {
 public:
  // Heads to select for, ascending; empty = all reuse. Valid until the next call.
  //   q, k [num_heads, seq_len, head_dim] f32|bf16, strided
  // Calls no method; costs two Backend::block_mean under drift, nothing otherwise. The layer gate
  // counts the heads of the whole `share`, whose ranks all call then.
  std::span<const int32_t> decide(const Refresh& rule, const Site& site, const TensorView& q,
                                  const TensorView& k, Backend& backend, Workspace& workspace,
                                  const HeadShare& share = {});
  // The heads of the last decide() have been selected. Provisional: they only have been looked at
  // and are selected again next time, whatever the rule says. Moves their anchors, except that a
  // mask made from such a look keeps the anchor of the look.
  void selected(bool provisional = false);
  // Saves or restores which heads have masks, and their anchors.
  void transfer(const StateIo& io, int64_t num_heads);

 private:
  void set_heads(int64_t num_heads);
  void measure(const Refresh& rule, const TensorView& q, const TensorView& k, Backend& backend,
               Workspace& workspace);
  double drift(const Refresh& rule, int64_t head) const;
  void gate(const Refresh& rule, const HeadShare& share);

  enum class Head : char { fresh, looked_at, selected };
  std::vector<Head> state_;  // [num_heads]
  int decided_step_ = 0, selected_step_ = 0;
  std::vector<int32_t> heads_;              // of the last decide()
  std::vector<int32_t> all_;                // 0..num_heads-1
  int64_t head_size_ = 0;                   // floats per head in the means; 0 without drift
  std::vector<float> q_anchor_, k_anchor_;  // [num_heads, means, head_dim]
  TensorView q_mean_, k_mean_;              // on the host, of the last decide()
};

}  // namespace lacuna
