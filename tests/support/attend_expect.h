// SPDX-License-Identifier: Apache-2.0
// Comparison of everything an attention call gives back.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "tests/support/attend_case.h"

namespace lacuna::test {

inline double lse_peak(const AttendResult& r) {
  double peak = 0.0;
  for (float x : r.lse)
    if (std::isfinite(x)) peak = std::max(peak, std::abs(double{x}));
  return peak;
}

inline void expect_same(const AttendCase& c, const AttendResult& r, const AttendResult& expected) {
  const AttendSpec& s = c.spec();
  const std::string context = s.describe();
  const double peak = lse_peak(expected);
  const int64_t shape[] = {s.heads, s.q_len, s.head_dim};
  EXPECT_TRUE(close(r.out, expected.out, attend_out(s.dtype, peak), shape, context));
  EXPECT_TRUE(near_abs(r.lse, expected.lse, lse_abs(s.dtype, peak), context + " lse"));
  EXPECT_TRUE(near_abs(r.block_mass, expected.block_mass, mass_abs(s.dtype, peak),
                       context + " block_mass"));
  EXPECT_EQ(r.skip_bits, expected.skip_bits) << context;
  EXPECT_EQ(r.pv_pairs, expected.pv_pairs) << context;
  EXPECT_TRUE(r.intact) << context << ": wrote outside the output";
}

struct Rule {
  SkipKind kind;
  float param;
  float kappa;
};

inline std::vector<Rule> skip_rules() {
  return {{SkipKind::running_max, 0.3f, 1.0f},  {SkipKind::running_max, 0.02f, 1.0f},
          {SkipKind::running_max, 2.0f, 1.0f},  {SkipKind::running_lse, -4.0f, 1.0f},
          {SkipKind::running_lse, -7.0f, 1.0f}, {SkipKind::recall, 0.9f, 1.0f},
          {SkipKind::recall, 0.8f, 0.1f}};
}

// The reference under a rule, which is left set in the case; nothing if a slightly smaller or
// larger parameter decides otherwise. Decisions may flip where a row sits within rounding of the
// threshold, so only stable cases can be compared; most are.
inline std::optional<AttendResult> stable_reference(AttendCase& c, Backend& ref, const Rule& rule) {
  const float margin = c.spec().dtype == DType::f32 ? 1e-4f : 5e-3f;
  const auto reference = [&](float change) {
    float param = rule.param;
    if (rule.kind == SkipKind::running_lse) param += change;
    if (rule.kind == SkipKind::running_max) param *= 1.0f + change;
    if (rule.kind == SkipKind::recall) param *= 1.0f + change * (1.0f - param);
    c.set_skip(rule.kind, param, rule.kappa);
    return c.run(ref);
  };
  const AttendResult low = reference(-margin), high = reference(margin);
  AttendResult mid = reference(0.0f);
  if (low.pv_pairs != high.pv_pairs || low.skip_bits != mid.skip_bits ||
      high.skip_bits != mid.skip_bits)
    return std::nullopt;
  return mid;
}

}  // namespace lacuna::test
