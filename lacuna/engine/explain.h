// SPDX-License-Identifier: Apache-2.0
// What ran where in a generation, and why.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "lacuna/engine/policy.h"
#include "lacuna/engine/trace.h"

namespace lacuna {

// A rule in words: `xattention:top_p=0.5,refresh=drift skip recall:r=0.9`; parameters at their
// defaults are left out, those that differ between heads read low..high.
std::string describe(const Rule& rule);

// Calls of neighbouring steps and layers that ran alike; ranges are half-open.
struct ExplainRow {
  int step_begin = 0, step_end = 0, layer_begin = 0, layer_end = 0;
  std::string branch;  // "cond", "uncond", or "both"
  std::string what;    // the rule in words, or the method where no rule says
  std::string why;     // why dense, or empty
  int64_t calls = 0;
  int64_t refreshed = 0, reused = 0;          // heads of sparse calls
  double qk_density = 0.0, pv_density = 0.0;  // means over calls
};

// Rows in order of step and layer; `rules` are those of the policy in words.
std::vector<ExplainRow> explain(std::span<const TraceEntry> calls,
                                std::span<const std::string> rules);

// `3` or `3-7` for the half-open range of a row.
std::string range_text(int begin, int end);

// The calls that a policy asks for at `sites`, before anything is known about masks: rule, method,
// and the reason where it is dense by rule.
std::vector<TraceEntry> planned_calls(const Policy& policy, std::span<const Site> sites,
                                      int64_t seq_len, int num_heads);

}  // namespace lacuna
