// SPDX-License-Identifier: Apache-2.0
// Distances between a result and its reference; sums in double. Views of equal shape, f32 or bf16.
#pragma once

#include "lacuna/core/tensor.h"

namespace lacuna {

struct ErrorStats {
  double rel_l1 = 0.0;  // sum |a - b| / sum |b|
  double rel_l2 = 0.0;  // |a - b| / |b|
  double max_abs = 0.0;
  double cos_sim = 1.0;
};

// Throws Error if shapes differ or a non-finite value stands in only one of the two.
ErrorStats compare(const TensorView& result, const TensorView& reference);
// Peak signal-to-noise ratio in dB for values in [0, peak]; infinity when equal.
double psnr(const TensorView& result, const TensorView& reference, double peak);

}  // namespace lacuna
