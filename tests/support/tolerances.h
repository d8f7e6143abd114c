// SPDX-License-Identifier: Apache-2.0
// Every numeric limit of the tests, as multiples of the spacing of the output type.
#pragma once

#include <limits>

#include "lacuna/core/tensor.h"

namespace lacuna::test {

// Spacing of numbers just above 1.
inline constexpr double kEpsF32 = 0x1p-23;
inline constexpr double kEpsBf16 = 0x1p-7;

// A result passes when all three hold; `peak` is the reference's largest finite magnitude.
struct Limits {
  double rel_l2;
  double max_abs;  // as a share of peak
  double min_cos;
};

inline constexpr Limits kExact{0.0, 0.0, 1.0 - 1e-12};

// Rounding to the output type alone: half a spacing at most, twice when both sides round.
inline constexpr Limits rounding(DType dtype, double spacings = 1.0) {
  const double eps = dtype == DType::bf16 ? kEpsBf16 : kEpsF32;
  return {spacings * 0.5 * eps, spacings * eps, 1.0 - spacings * eps};
}

// Attention. Errors of the logits enter outputs and lse directly: sharp inputs have large logits,
// and with them `logit_peak` (the largest |lse| of the reference will do) spacings of f32 more.
// bf16: probabilities are rounded before the product with v (2.2e-3), outputs are rounded once.
inline constexpr Limits attend_out(DType dtype, double logit_peak = 0.0) {
  const double logits = 4.0 * kEpsF32 * logit_peak;
  if (dtype == DType::bf16) return {2.2e-3 + 0.3 * kEpsBf16 + logits, 2.0 * kEpsBf16, 0.9999};
  return {3e-6 + logits, 160 * kEpsF32 + 8.0 * logits, 0.999999};
}

// Absolute: lse is a natural logarithm.
inline constexpr double lse_abs(DType dtype, double logit_peak = 0.0) {
  return (dtype == DType::bf16 ? 2e-3 : 1e-5) + 4.0 * kEpsF32 * logit_peak;
}

// Absolute: block mass is a share of 1.
inline constexpr double mass_abs(DType dtype, double logit_peak = 0.0) {
  return (dtype == DType::bf16 ? 2e-3 : 1e-5) + 4.0 * kEpsF32 * logit_peak;
}

// Squared distance to a chosen centroid above the least, as a share of |x|^2 + |c|^2: f32 sums.
inline constexpr double kNearestShare = 8 * kEpsF32;

// Matrix product, convolution and fused rows with f32 sums over some hundred terms.
inline constexpr Limits network(DType dtype) {
  if (dtype == DType::bf16) return {0.5 * kEpsBf16, 2.0 * kEpsBf16, 0.9999};
  return {24 * kEpsF32, 160 * kEpsF32, 0.999999};
}

// Latents of a whole generation by another backend: guidance and steps add up what each forward is
// off by.
inline constexpr Limits generation(DType dtype) {
  if (dtype == DType::bf16) return {4.0 * kEpsBf16, 16.0 * kEpsBf16, 0.999};
  return {400 * kEpsF32, 4000 * kEpsF32, 0.999999};
}

}  // namespace lacuna::test
