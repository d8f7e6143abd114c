// SPDX-License-Identifier: Apache-2.0
#include "lacuna/engine/trace.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace lacuna {
namespace {

TraceEntry entry(int step, double qk, double pv, double select_ms, double attend_ms) {
  TraceEntry e;
  e.site.step = step;
  e.method = "radial";
  e.qk_density = qk;
  e.pv_density = pv;
  e.select_ms = select_ms;
  e.attend_ms = attend_ms;
  e.mask_hash = 0xfedcba9876543210ull;
  return e;
}

TEST(Trace, MeansAndSums) {
  Trace trace;
  EXPECT_EQ(trace.qk_density(), 1.0);
  trace.add(entry(0, 1.0, 1.0, 0.0, 8.0));
  trace.add(entry(1, 0.5, 0.25, 2.0, 4.0));
  trace.add(entry(1, 0.25, 0.25, 1.0, 2.0));
  EXPECT_DOUBLE_EQ(trace.qk_density(1), 0.375);
  EXPECT_DOUBLE_EQ(trace.pv_density(), 0.5);
  EXPECT_DOUBLE_EQ(trace.select_ms(), 3.0);
  EXPECT_DOUBLE_EQ(trace.attend_ms(1), 6.0);
  EXPECT_EQ(trace.qk_density(7), 1.0);
  EXPECT_EQ(trace.attend_ms(7), 0.0);
}

TEST(Trace, JsonHoldsEveryEntry) {
  Trace trace;
  EXPECT_EQ(nlohmann::json::parse(trace.to_json()).size(), 0u);
  trace.add(entry(0, 1.0, 1.0, 0.0, 8.0));
  trace.add(entry(3, 0.5, 0.25, 2.0, 4.0));
  const auto json = nlohmann::json::parse(trace.to_json());
  ASSERT_EQ(json.size(), 2u);
  EXPECT_EQ(json[1]["step"], 3);
  EXPECT_EQ(json[1]["method"], "radial");
  EXPECT_EQ(json[1]["pv_density"], 0.25);
  EXPECT_EQ(json[1]["branch"], "cond");
  EXPECT_EQ(json[1]["mask_hash"], "fedcba9876543210");
}

}  // namespace
}  // namespace lacuna
