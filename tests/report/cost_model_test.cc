// SPDX-License-Identifier: Apache-2.0
#include "lacuna/report/cost_model.h"

#include <gtest/gtest.h>

#include "lacuna/core/error.h"
#include "tests/support/local_call.h"

namespace lacuna::test {
namespace {

TEST(CostModel, RunsAlongLinesAndPromisesNothingBelow) {
  const CostModel model(50.0, 5.0, {{1.0, 60.0}, {0.1, 10.0}, {0.5, 30.0}});
  EXPECT_DOUBLE_EQ(model.attend_ms(0.1), 10.0);
  EXPECT_DOUBLE_EQ(model.attend_ms(0.3), 20.0);
  EXPECT_DOUBLE_EQ(model.attend_ms(0.5), 30.0);
  EXPECT_DOUBLE_EQ(model.attend_ms(0.75), 45.0);
  EXPECT_DOUBLE_EQ(model.attend_ms(1.0), 60.0);
  EXPECT_DOUBLE_EQ(model.attend_ms(0.01), 10.0);
  const double heads[] = {0.1, 0.5, 1.0};
  EXPECT_DOUBLE_EQ(model.sparse_ms(heads), 5.0 + 100.0 / 3.0);
}

TEST(CostModel, GrowsWithDensityAboveWhatWasMeasured) {
  const CostModel model(50.0, 0.0, {{0.5, 30.0}});
  EXPECT_DOUBLE_EQ(model.attend_ms(0.75), 45.0);
}

// 5 + 30 + 60 (d - 0.5) = 50 at d = 0.75.
TEST(CostModel, BreakEven) {
  const CostModel model(50.0, 5.0, {{1.0, 60.0}, {0.1, 10.0}, {0.5, 30.0}});
  EXPECT_NEAR(model.break_even(), 0.75, 1e-12);
  const double below[] = {model.break_even() - 1e-6}, above[] = {model.break_even() + 1e-6};
  EXPECT_LT(model.sparse_ms(below), model.dense_ms());
  EXPECT_GE(model.sparse_ms(above), model.dense_ms());
  EXPECT_EQ(CostModel(14.0, 5.0, {{0.1, 10.0}, {1.0, 60.0}}).break_even(), 0.0);
  EXPECT_EQ(CostModel(70.0, 5.0, {{0.1, 10.0}, {1.0, 60.0}}).break_even(), 1.0);
}

TEST(CostModel, ATimeBelowThatOfALowerDensityIsNoise) {
  const CostModel model(50.0, 0.0, {{0.1, 20.0}, {0.5, 12.0}, {1.0, 40.0}});
  EXPECT_DOUBLE_EQ(model.attend_ms(0.5), 20.0);
  EXPECT_DOUBLE_EQ(model.attend_ms(0.75), 30.0);
}

TEST(CostModel, RefusesNoPointsAndNoTimes) {
  EXPECT_THROW(CostModel(1.0, 0.0, {}), Error);
  EXPECT_THROW(CostModel(0.0, 0.0, {{0.5, 1.0}}), Error);
  EXPECT_THROW(CostModel(1.0, -1.0, {{0.5, 1.0}}), Error);
  EXPECT_THROW(CostModel(1.0, 0.0, {{0.0, 1.0}}), Error);
  EXPECT_THROW(CostModel(1.0, 0.0, {{1.1, 1.0}}), Error);
}

TEST(MeasureCost, MeasuresTheMethodAtTheDensitiesItReaches) {
  const auto backend = make_backend("cpu");
  const LocalCall local({5.0f, 5.0f, 5.0f});
  const RecordedCall call = local.at({.num_steps = 8});
  const ReplayCase wanted = replay_case("xattention:block=16,stride=4", "none");
  const MeasuredCost cost = measure_cost(*backend, call, wanted, {.repeats = 1});
  EXPECT_EQ(cost.heads, 3);
  EXPECT_EQ(cost.full_density, 1.0);
  EXPECT_GT(cost.model.dense_ms(), 0.0);
  EXPECT_GT(cost.model.select_ms(), 0.0);
  ASSERT_EQ(cost.model.points().size(), 4u);
  const double densities[] = {0.1, 0.25, 0.5, 1.0};
  for (size_t i = 0; i < 4; ++i)
    EXPECT_NEAR(cost.model.points()[i].density, densities[i], 0.05 * densities[i]);
  EXPECT_EQ(measure_cost(*backend, call, wanted, {.repeats = 1, .seconds = 1e-9}).heads, 1);
  EXPECT_THROW(measure_cost(*backend, call, replay_case("window", "none"), {}), Error);
}

// One block: nothing can be dropped, and that is what is measured.
TEST(MeasureCost, OneBlockIsDense) {
  const auto backend = make_backend("cpu");
  const LocalCall local;
  const MeasuredCost cost = measure_cost(
      *backend, local.at({}), replay_case("xattention:block=1024", "none"), {.repeats = 1});
  for (const CostModel::Point& p : cost.model.points()) EXPECT_EQ(p.density, 1.0);
}

}  // namespace
}  // namespace lacuna::test
