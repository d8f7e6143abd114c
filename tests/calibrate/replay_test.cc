// SPDX-License-Identifier: Apache-2.0
#include "lacuna/calibrate/replay.h"

#include <gtest/gtest.h>

#include <cmath>

#include "lacuna/calibrate/replay_call.h"
#include "lacuna/core/error.h"
#include "tests/support/local_call.h"

namespace lacuna::test {
namespace {

class ReplayTest : public testing::Test {
 protected:
  LocalCall call_;
  std::vector<RecordedCall> calls_{call_.at({.step = 3, .num_steps = 8})};
  std::unique_ptr<Backend> backend_ = make_backend("cpu");
};

TEST_F(ReplayTest, KeepingEverythingIsDense) {
  Replay replay(*backend_, calls_, 1);
  EXPECT_EQ(replay.dense().rel_l1, 0.0);
  const ReplayRow all = replay.run(replay_case("xattention:top_p=1,block=32,stride=8", "none"));
  EXPECT_EQ(all.qk_density, 1.0);
  EXPECT_NEAR(all.recall, 1.0, 1e-5);
  EXPECT_LT(all.rel_l1, 1e-5);
}

TEST_F(ReplayTest, RecallFallsAndErrorRisesWithWhatIsDropped) {
  Replay replay(*backend_, calls_, 1);
  const ReplayRow more = replay.run(replay_case("adaspa:density=0.5,block=32,tiers=0", "none"));
  const ReplayRow less = replay.run(replay_case("adaspa:density=0.1,block=32,tiers=0", "none"));
  EXPECT_NEAR(more.qk_density, 0.5, 0.05);
  EXPECT_NEAR(less.qk_density, 0.1, 0.05);
  EXPECT_GT(more.recall, less.recall);
  EXPECT_LT(more.rel_l1, less.rel_l1);
  EXPECT_GT(less.recall, 0.3);
  EXPECT_LT(less.recall, 1.0);
  EXPECT_GT(less.select_ms, 0.0);
}

// The recall rule promises what the row says.
TEST_F(ReplayTest, RecallOfTheRecallRule) {
  Replay replay(*backend_, calls_, 1);
  const ReplayRow row = replay.run(replay_case("dense", "recall:r=0.5"));
  EXPECT_GE(row.recall, 0.5);
  EXPECT_LT(row.pv_density, 1.0);
}

TEST_F(ReplayTest, FindsADensity) {
  Replay replay(*backend_, calls_, 1);
  for (const char* method :
       {"xattention:block=16,stride=4", "adaspa:block=16", "sparge:block_q=16,block_k=16"}) {
    const auto row = replay.at_density(replay_case(method, "none"), 0.25);
    ASSERT_TRUE(row) << method;
    EXPECT_NEAR(row->pv_density, 0.25, 0.0125) << method;
    EXPECT_FALSE(row->parameter.empty());
  }
  EXPECT_FALSE(replay.at_density(replay_case("dense", "none"), 0.25));
}

TEST_F(ReplayTest, KnobsOfSkipRulesMoveTheDensity) {
  Replay replay(*backend_, calls_, 1);
  for (const char* skip : {"running_max", "running_lse", "recall"}) {
    ReplayCase wanted = replay_case("dense", skip);
    ASSERT_TRUE(wanted.knob) << skip;
    wanted.knob->set(wanted, wanted.knob->full);
    const double full = replay.run(wanted).pv_density;
    wanted.knob->set(wanted, wanted.knob->sparse);
    EXPECT_LT(replay.run(wanted).pv_density, full) << skip;
  }
}

TEST_F(ReplayTest, WhatIsFoundForASkipRuleIsWhatItsOptionTakes) {
  Replay replay(*backend_, calls_, 1);
  for (const std::string skip : {"running_max", "running_lse", "recall"}) {
    const ReplayCase wanted = replay_case("dense", skip);
    const auto row = replay.at_density(wanted, replay.run(wanted).pv_density);
    ASSERT_TRUE(row) << skip;
    const ReplayCase again = replay_case("dense", skip + ":" + row->parameter);
    EXPECT_NEAR(replay.run(again).pv_density, row->pv_density, 0.05) << row->parameter;
  }
  EXPECT_EQ(replay_case("dense", "recall").knob->value_text(std::log(0.0309)), "0.96910");
  EXPECT_EQ(replay_case("dense", "recall").knob->value_text(-15.0), "0.99999969");
}

// The knob is lambda, also where lambda was given as a / keys: the range is the same.
TEST_F(ReplayTest, ACalibratedThresholdIsSearchedOverTheWholeRange) {
  Replay replay(*backend_, calls_, 1);
  const auto density = [&](const char* skip, double lambda) {
    ReplayCase wanted = replay_case("dense", skip);
    wanted.knob->set(wanted, std::log(lambda));
    return replay.run(wanted).pv_density;
  };
  for (const double lambda : {1.0, 0.1, 1e-6})
    EXPECT_EQ(density("running_max:a=300", lambda), density("running_max", lambda)) << lambda;
  EXPECT_LT(density("running_max:a=300", 1.0), 1.0);
}

// A search does not turn sparge's top-cdf mode into top-k.
TEST_F(ReplayTest, TheKnobIsOfTheModeThatWasAskedFor) {
  EXPECT_EQ(replay_case("sparge", "none").knob->parameter, "top_k");
  ReplayCase wanted = replay_case("sparge:top_k=0,block_q=16,block_k=16", "none");
  ASSERT_TRUE(wanted.knob);
  EXPECT_EQ(wanted.knob->parameter, "top_cdf");
  Replay replay(*backend_, calls_, 1);
  wanted.knob->set(wanted, wanted.knob->full);
  const double full = replay.run(wanted).qk_density;
  wanted.knob->set(wanted, wanted.knob->sparse);
  EXPECT_LT(replay.run(wanted).qk_density, full);
  EXPECT_EQ(wanted.plan.params.get("top_k"), 0.0);
}

// The short way to a density tells what the long one does.
TEST_F(ReplayTest, SelectingAloneTellsTheDensity) {
  for (const char* method :
       {"xattention:block=16,stride=4,top_p=0.6", "sparge:block_q=16,block_k=16", "svg:block=16",
        "svg2:top_p=0.5,q_clusters=8,k_clusters=16", "radial:decay=0.5", "window"}) {
    const Plan plan = parse_plan(method);
    const auto density = selected_density(*backend_, calls_[0], plan);
    ASSERT_TRUE(density) << method;
    EXPECT_EQ(*density, replay_call(*backend_, calls_[0], plan, 0).qk_density) << method;
    EXPECT_LE(*density, 1.0) << method;
  }
  EXPECT_FALSE(selected_density(*backend_, calls_[0], parse_plan("adaspa:block=16")));
  EXPECT_FALSE(selected_density(*backend_, calls_[0], parse_plan("xattention:refresh=drift")));
  EXPECT_FALSE(selected_density(*backend_, calls_[0], Plan()));
}

TEST_F(ReplayTest, TheFloorIsTheOrderOfSums) {
  Replay replay(*backend_, calls_, 1);
  EXPECT_GT(replay.reordered().rel_l1, 0.0);
  EXPECT_LT(replay.reordered().rel_l1, 1e-5);
}

// A mask that is never made again is selected once in the 8 steps of the recording.
TEST_F(ReplayTest, SelectionsAreCountedAsOftenAsTheyAreMade) {
  Replay replay(*backend_, calls_, 1);
  EXPECT_EQ(replay.run(replay_case("radial", "none")).selections, 1.0 / 8);
  const ReplayRow row = replay.run(replay_case("xattention:block=16,stride=4", "none"));
  EXPECT_EQ(row.selections, 1.0);
  EXPECT_EQ(row.total_ms(), row.select_ms + row.attend_ms);
}

TEST_F(ReplayTest, CanBeStoppedBetweenCalls) {
  struct Stop {};
  int left = 5;
  const auto between = [&] {
    if (--left < 0) throw Stop();
  };
  EXPECT_THROW(
      {
        Replay replay(*backend_, calls_, 1, between);
        for (int i = 0; i < 10; ++i) replay.run(replay_case("xattention", "none"));
      },
      Stop);
}

TEST_F(ReplayTest, RefusesNothing) {
  EXPECT_THROW(Replay(*backend_, {}, 1), Error);
  EXPECT_THROW(Replay(*backend_, calls_, 0), Error);
}

}  // namespace
}  // namespace lacuna::test
