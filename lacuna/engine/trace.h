// SPDX-License-Identifier: Apache-2.0
// What really ran, per attention call.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lacuna/core/site.h"

namespace lacuna {

struct TraceEntry {
  Site site;
  std::string method;  // "dense", "xattention", ...
  std::string reason;  // why dense ("dense-steps", "no rule", ...), or empty
  int32_t rule = -1;   // of the policy's rules; -1 = none matched, or a replay
  int32_t num_heads = 0;
  int32_t heads_refreshed = 0;  // heads whose mask was selected in this call
  double qk_density = 1.0;      // listed (query, key) pairs / all, mean over heads
  double pv_density = 1.0;      // after the skip rule
  // Products of compensation / all pairs: (query, or mean query of a block) x mean key.
  double pooled_density = 0.0;
  double select_ms = 0.0;  // refresh decision, selection, compaction, observe
  double attend_ms = 0.0;  // kernel, compensation, moving tokens into order and back
  uint64_t mask_hash = 0;  // 0 = dense
};

class Trace {
 public:
  void add(TraceEntry entry) { entries_.push_back(std::move(entry)); }
  void clear() { entries_.clear(); }
  // Forgets the entries from `first` on.
  void cut(size_t first) { entries_.resize(first); }
  const std::vector<TraceEntry>& entries() const { return entries_; }
  // Means over entries of one step, or of all steps when step < 0; 1 when there are none.
  double qk_density(int step = -1) const;
  double pv_density(int step = -1) const;
  double select_ms(int step = -1) const;  // sums
  double attend_ms(int step = -1) const;

 private:
  std::vector<TraceEntry> entries_;
};

}  // namespace lacuna
