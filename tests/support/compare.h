// SPDX-License-Identifier: Apache-2.0
// Comparisons that say where and how much: shape and seed through `context`, first bad index, both
// values, share of bad elements.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <span>
#include <string>
#include <vector>

#include "tests/support/random.h"
#include "tests/support/tolerances.h"

namespace lacuna::test {

// Same non-finite value, or both finite.
inline bool same_kind(double a, double b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  if (std::isinf(a) || std::isinf(b)) return a == b;
  return true;
}

// Row-major index of element n: "[1, 0, 17]".
inline std::string index_text(std::span<const int64_t> shape, int64_t n) {
  std::string text;
  for (size_t i = shape.size(); i-- > 0;) {
    text = fmt::format("{}{}{}", n % shape[i], text.empty() ? "" : ", ", text);
    n /= shape[i];
  }
  return "[" + text + "]";
}

namespace internal {

struct Bad {
  int64_t first = -1;
  int64_t count = 0;
  void add(int64_t n) {
    if (count++ == 0) first = n;
  }
};

inline testing::AssertionResult bad_result(const char* what, const Bad& bad,
                                           std::span<const double> result,
                                           std::span<const double> reference,
                                           std::span<const int64_t> shape,
                                           const std::string& context) {
  const auto n = static_cast<size_t>(bad.first);
  return testing::AssertionFailure() << fmt::format(
             "{}\n  {}: first at {} of [{}]: result {:.9g}, reference {:.9g}; {} of {} bad "
             "({:.2f}%)",
             context, what, index_text(shape, bad.first), fmt::join(shape, ", "), result[n],
             reference[n], bad.count, result.size(), 100.0 * bad.count / result.size());
}

inline testing::AssertionResult compare_kinds(std::span<const double> result,
                                              std::span<const double> reference,
                                              std::span<const int64_t> shape,
                                              const std::string& context) {
  if (result.size() != reference.size())
    return testing::AssertionFailure()
           << context << ": " << result.size() << " values, reference has " << reference.size();
  Bad bad;
  for (size_t n = 0; n < result.size(); ++n)
    if (!same_kind(result[n], reference[n])) bad.add(static_cast<int64_t>(n));
  if (bad.count > 0)
    return bad_result("inf or NaN differs", bad, result, reference, shape, context);
  return testing::AssertionSuccess();
}

}  // namespace internal

// Positions of inf and NaN first, then element by element |a - b| <= limit.
inline testing::AssertionResult near_abs(std::span<const double> result,
                                         std::span<const double> reference, double limit,
                                         std::span<const int64_t> shape,
                                         const std::string& context) {
  if (auto kinds = internal::compare_kinds(result, reference, shape, context); !kinds) return kinds;
  internal::Bad bad;
  for (size_t n = 0; n < result.size(); ++n)
    if (std::isfinite(result[n]) && !(std::abs(result[n] - reference[n]) <= limit))
      bad.add(static_cast<int64_t>(n));
  if (bad.count == 0) return testing::AssertionSuccess();
  return internal::bad_result(fmt::format("off by more than {:.3g}", limit).c_str(), bad, result,
                              reference, shape, context);
}

inline testing::AssertionResult near_abs(std::span<const float> result,
                                         std::span<const float> reference, double limit,
                                         const std::string& context) {
  const std::vector<double> a(result.begin(), result.end()), b(reference.begin(), reference.end());
  const int64_t shape[] = {static_cast<int64_t>(a.size())};
  return near_abs(a, b, limit, shape, context);
}

// Positions of inf and NaN first, then largest error, relative L2 and cosine.
inline testing::AssertionResult close(std::span<const double> result,
                                      std::span<const double> reference, const Limits& limits,
                                      std::span<const int64_t> shape, const std::string& context) {
  if (auto kinds = internal::compare_kinds(result, reference, shape, context); !kinds) return kinds;
  double peak = 0.0, diff2 = 0.0, ref2 = 0.0, result2 = 0.0, product = 0.0;
  for (size_t n = 0; n < result.size(); ++n) {
    if (!std::isfinite(reference[n])) continue;
    peak = std::max(peak, std::abs(reference[n]));
    diff2 += (result[n] - reference[n]) * (result[n] - reference[n]);
    ref2 += reference[n] * reference[n];
    result2 += result[n] * result[n];
    product += result[n] * reference[n];
  }
  if (auto near = near_abs(result, reference, limits.max_abs * peak, shape, context); !near)
    return near;
  const double rel_l2 = ref2 > 0.0 ? std::sqrt(diff2 / ref2) : std::sqrt(diff2);
  const double norms = std::sqrt(ref2) * std::sqrt(result2);
  const double cos = norms > 0.0 ? product / norms : 1.0;
  if (rel_l2 <= limits.rel_l2 && cos >= limits.min_cos) return testing::AssertionSuccess();
  return testing::AssertionFailure()
         << fmt::format("{}\n  rel_l2 {:.3g} (limit {:.3g}), cos {:.9f} (limit {:.9f})", context,
                        rel_l2, limits.rel_l2, cos, limits.min_cos);
}

// Views of equal shape, f32 or bf16, any strides.
inline testing::AssertionResult close(const TensorView& result, const TensorView& reference,
                                      const Limits& limits, const std::string& context) {
  const std::vector<double> a = values(result), b = values(reference);
  return close(a, b, limits, std::span(result.shape.data(), static_cast<size_t>(result.rank)),
               fmt::format("{} {}", context, result.describe()));
}

}  // namespace lacuna::test
