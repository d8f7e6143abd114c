// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/metrics.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "lacuna/core/bf16.h"
#include "lacuna/core/error.h"

namespace lacuna {
namespace {

double element(const TensorView& view, int64_t flat) {
  int64_t offset = 0;
  for (int i = view.rank - 1; i >= 0; --i) {
    offset += flat % view.shape[i] * view.stride[i];
    flat /= view.shape[i];
  }
  if (view.dtype == DType::bf16) return static_cast<float>(view.as<BFloat16>()[offset]);
  return view.as<float>()[offset];
}

void check_shapes(const TensorView& a, const TensorView& b) {
  LACUNA_CHECK(
      a.rank == b.rank && std::equal(a.shape.begin(), a.shape.begin() + a.rank, b.shape.begin()),
      "compare: {} with {}, expected equal shapes", a.describe(), b.describe());
}

}  // namespace

ErrorStats compare(const TensorView& result, const TensorView& reference) {
  check_shapes(result, reference);
  double diff1 = 0, ref1 = 0, diff2 = 0, ref2 = 0, res2 = 0, dot = 0;
  ErrorStats stats;
  for (int64_t i = 0, n = result.numel(); i < n; ++i) {
    const double a = element(result, i), b = element(reference, i);
    if (!std::isfinite(a) || !std::isfinite(b)) {
      LACUNA_CHECK((std::isnan(a) && std::isnan(b)) || a == b,
                   "compare: element {} is {}, reference {}", i, a, b);
      continue;
    }
    const double d = std::abs(a - b);
    diff1 += d, ref1 += std::abs(b), diff2 += d * d;
    ref2 += b * b, res2 += a * a, dot += a * b;
    stats.max_abs = std::max(stats.max_abs, d);
  }
  constexpr double kTiny = std::numeric_limits<double>::min();
  stats.rel_l1 = diff1 / std::max(ref1, kTiny);
  stats.rel_l2 = std::sqrt(diff2 / std::max(ref2, kTiny));
  stats.cos_sim = ref2 == 0 && res2 == 0 ? 1.0 : dot / std::max(std::sqrt(ref2 * res2), kTiny);
  return stats;
}

double psnr(const TensorView& result, const TensorView& reference, double peak) {
  check_shapes(result, reference);
  double sum = 0;
  const int64_t n = result.numel();
  for (int64_t i = 0; i < n; ++i) {
    const double d = element(result, i) - element(reference, i);
    sum += d * d;
  }
  if (sum == 0) return std::numeric_limits<double>::infinity();
  return 10.0 * std::log10(peak * peak * static_cast<double>(n) / sum);
}

}  // namespace lacuna
