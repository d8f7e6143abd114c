// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/pipeline/verify_compare.h"

#include <charconv>
#include <cmath>

#include "lacuna/core/error.h"
#include "lacuna/core/metrics.h"
#include "lacuna/core/rng.h"

namespace lacuna {
namespace {

constexpr double kElementTolerance = 2e-5;  // docs/formats.md, "Numbers"
constexpr double kRmsTolerance = 1e-5;
constexpr double kProbeTolerance = 2e-5;

void hold(VerifyResult& result, const std::string& what, double value, double expected,
          double tolerance) {
  const double ratio = std::abs(value - expected) / tolerance;
  // A NaN must fail, so the test is written for what passes.
  if (!(ratio <= 1.0)) {
    if (!result.detail.empty()) result.detail += "; ";
    result.detail +=
        fmt::format("{} is {:.9g}, expected {:.9g} +- {:.2g}", what, value, expected, tolerance);
  }
  if (!(ratio <= result.worst)) result.worst = ratio;
}

int64_t parse_index(const std::string& text, int64_t limit) {
  int64_t index = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), index);
  LACUNA_CHECK(
      error == std::errc() && end == text.data() + text.size() && index >= 0 && index < limit,
      "goldens: element {}, expected 0 to {}", text, limit - 1);
  return index;
}

}  // namespace

VerifyResult compare_numbers(const std::string& name, const GoldenJson& expect,
                             const TensorView& result, double relative) {
  VerifyResult row{.name = name};
  const float* y = result.as<float>();
  const int64_t n = result.numel();
  int64_t expected_count = 1;
  for (const auto& d : expect.at("shape")) expected_count *= d.get<int64_t>();
  if (expected_count != n) {
    row.detail = fmt::format("has {} values, expected {}", n, expected_count);
    row.worst = INFINITY;
    return row;
  }
  const double element = relative > 0 ? relative : kElementTolerance;
  double squares = 0.0, sum = 0.0;
  for (int64_t i = 0; i < n; ++i) squares += static_cast<double>(y[i]) * y[i], sum += y[i];
  const double rms = std::sqrt(squares / static_cast<double>(n));
  if (expect.contains("rms")) {
    const double expected = expect.at("rms").get<double>();
    hold(row, "rms", rms, expected, (relative > 0 ? relative : kRmsTolerance) * expected);
  }
  if (expect.contains("probe")) {
    const std::string probe = "probe:" + expect.at("tag").get<std::string>();
    double value = 0.0;
    for (int64_t i = 0; i < n; ++i) value += y[i] * hash_uniform(probe, static_cast<uint64_t>(i));
    const double tolerance = relative > 0 ? relative : kProbeTolerance;
    hold(row, "probe", value, expect.at("probe").get<double>(),
         tolerance * rms * std::sqrt(static_cast<double>(n)));
  }
  if (expect.contains("sum")) {
    hold(row, "sum", sum, expect.at("sum").get<double>(), element * static_cast<double>(n));
  }
  if (expect.contains("values")) {
    for (const auto& [key, value] : expect.at("values").items()) {
      const double expected = value.get<double>();
      hold(row, fmt::format("y[{}]", key), y[parse_index(key, n)], expected,
           element * (1.0 + std::abs(expected)));
    }
  }
  LACUNA_CHECK(expect.contains("rms") || expect.contains("probe") || expect.contains("values"),
               "goldens: {} expects no numbers", name);
  row.passed = row.detail.empty();
  return row;
}

VerifyResult compare_runs(const std::string& name, const TensorView& result,
                          const TensorView& reference, const Bf16Limit& limit) {
  VerifyResult row{.name = name};
  const ErrorStats stats = compare(result, reference);
  hold(row, "relative L2 to f32", stats.rel_l2, 0.0, limit.rel_l2);
  hold(row, "cosine to f32", stats.cos_sim, 1.0, 1.0 - limit.cos_sim);
  row.passed = row.detail.empty();
  return row;
}

}  // namespace lacuna
