// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>

#include "tests/support/random.h"

namespace lacuna::test {

// A view [m, n] of f32 or bf16 whose rows lie `pad` elements further apart than they need to, with
// NaN between them.
struct Rows {
  Tensor memory;
  TensorView view;
  Rows(DType dtype, int64_t m, int64_t n, int64_t pad, uint64_t seed)
      : memory(dtype, {m, n + pad}), view(memory.view()) {
    for (int64_t i = 0; i < memory.numel(); ++i) put(memory, i, std::nan(""));
    view.shape[1] = n;
    fill_normal(view, seed);
  }
  // True when the padding is still NaN.
  bool intact() const {
    for (int64_t i = 0; i < memory.view().shape[0]; ++i)
      for (int64_t c = view.shape[1]; c < memory.view().shape[1]; ++c)
        if (!std::isnan(get(memory, i * memory.view().shape[1] + c))) return false;
    return true;
  }
};

}  // namespace lacuna::test
