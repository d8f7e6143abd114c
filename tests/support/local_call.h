// SPDX-License-Identifier: Apache-2.0
// An attention call in which keys near a token's own place matter most, so that masks can tell
// blocks apart.
#pragma once

#include <vector>

#include "lacuna/engine/recording.h"
#include "tests/support/random.h"

namespace lacuna::test {

struct LocalCall {
  VideoGrid grid{4, 8, 16};
  Tensor q, k, v;  // [near.size(), tokens, 16] f32

  // near[h]: how much nearness counts in head h; 0 leaves noise, whose softmax is nearly flat.
  explicit LocalCall(std::vector<float> near = {5.0f, 5.0f}) {
    const auto heads = static_cast<int64_t>(near.size());
    const int64_t tokens = grid.tokens();
    q = Tensor(DType::f32, {heads, tokens, 16});
    k = Tensor(DType::f32, {heads, tokens, 16});
    v = random_tensor(DType::f32, {heads, tokens, 16}, 3);
    const Tensor noise = random_tensor(DType::f32, {heads, tokens, 16}, 1);
    for (int64_t i = 0; i < q.numel(); ++i) {
      const int64_t place = (i / 16) % tokens / 32;
      const float here = i % 16 == place % 16 ? near[static_cast<size_t>(i / 16 / tokens)] : 0.0f;
      q.as<float>()[i] = here + 0.7f * noise.as<float>()[i];
      k.as<float>()[i] = here - 0.7f * noise.as<float>()[i];
    }
  }

  RecordedCall at(Site site) const { return {site, grid, 0, q, k, v}; }
};

}  // namespace lacuna::test
