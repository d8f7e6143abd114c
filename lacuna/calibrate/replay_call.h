// SPDX-License-Identifier: Apache-2.0
// One recorded attention call under a plan, as later steps of a generation would run it.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "lacuna/backend/backend.h"
#include "lacuna/engine/policy.h"
#include "lacuna/engine/recording.h"

namespace lacuna {

// What one plan did on one call.
struct CallOutcome {
  Tensor out;              // [num_heads, seq_len, head_dim], dtype of q
  std::vector<float> lse;  // [num_heads, seq_len] of what was kept
  double qk_density = 1.0, pv_density = 1.0;
  double select_ms = 0.0, attend_ms = 0.0;  // medians over the timed calls
};

// Runs the call as if it came again at the next steps: a method with a memory may look in the first
// and select in the second, so the third is what later steps are like. A plan without one selects
// alike every time, and its first call is as good as any. `repeats` timed calls come after a warm
// one; 0 asks for the outcome only. `between`, which may be empty, is called before every attention
// call and may throw to stop. The time of a selection is that of the last calls that made one.
CallOutcome replay_call(Backend& backend, const RecordedCall& call, const Plan& plan, int repeats,
                        const std::function<void()>& between = {});

// Density of what the plan selects on the call, without attention; empty when that cannot be known
// without it: a skip rule, a method that looks, masks that outlive a step.
std::optional<double> selected_density(Backend& backend, const RecordedCall& call,
                                       const Plan& plan);

double median(std::vector<double> values);

}  // namespace lacuna
