// SPDX-License-Identifier: Apache-2.0
#include "lacuna/engine/trace.h"

#include <gtest/gtest.h>

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

}  // namespace
}  // namespace lacuna
