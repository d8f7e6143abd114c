// SPDX-License-Identifier: Apache-2.0
// A dense generation that is looked into at a few steps and timed.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "lacuna/calibrate/subject.h"

namespace lacuna {

// Early, middle and late: floor of 10 %, 50 % and 90 % of `count`, each once.
std::vector<int> spread_steps(int count);
// First, middle and last of `count` layers, each once.
std::vector<int> spread_layers(int count);

// Medians over steps; the time spent in looking is not in them.
struct DenseTiming {
  double step_ms = 0.0;       // all forwards of a step and its sampler
  double attention_ms = 0.0;  // self-attention in it
  double share() const { return step_ms > 0.0 ? attention_ms / step_ms : 0.0; }
};

// Generates prompt `prompt` up to the last of `steps` (at least one, ascending), and hands the
// inputs of every conditional self-attention of these steps to `look`. `progress` gets (done,
// total) attention calls. What they throw ends the pass.
DenseTiming dense_pass(Subject& subject, int prompt, std::span<const int> steps,
                       const Engine::InputsHook& look,
                       const std::function<void(int64_t, int64_t)>& progress = {});

// A whole generation of `prompt` under `policy`: sums over its steps.
struct PolicyTiming {
  double total_ms = 0.0, attention_ms = 0.0;  // attention with its selection
  double density = 1.0;                       // of Q K, mean over the calls
};
PolicyTiming policy_pass(Subject& subject, int prompt, Policy policy,
                         const std::function<void(int64_t, int64_t)>& progress = {});

}  // namespace lacuna
