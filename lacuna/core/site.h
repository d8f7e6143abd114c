// SPDX-License-Identifier: Apache-2.0
// Where in a generation an attention call happens. All state is keyed by it; nothing counts calls.
#pragma once

#include <cstdint>

namespace lacuna {

enum class Branch : uint8_t { cond, uncond };

// Text tokens behind the video tokens, which differ in number where the prompts do.
struct TextTokens {
  int64_t cond = 0, uncond = 0;
  int64_t of(Branch branch) const { return branch == Branch::cond ? cond : uncond; }
};

struct Site {
  int step = 0;  // 0-based denoising index
  int num_steps = 1;
  float sigma = 1.0f;  // noise level of this step
  int layer = 0;       // transformer block
  int num_layers = 1;
  Branch branch = Branch::cond;  // classifier-free guidance
  int expert = 0;                // 0 = only or high-noise network, 1 = low-noise network
};

}  // namespace lacuna
