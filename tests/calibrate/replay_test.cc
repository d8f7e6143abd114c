// SPDX-License-Identifier: Apache-2.0
#include "lacuna/calibrate/replay.h"

#include <gtest/gtest.h>

#include "lacuna/core/error.h"
#include "tests/support/random.h"

namespace lacuna::test {
namespace {

// Keys near a token's own place matter most, so that masks can tell blocks apart.
class ReplayTest : public testing::Test {
 protected:
  ReplayTest() {
    const int64_t tokens = grid_.tokens();
    q_ = Tensor(DType::f32, {2, tokens, 16});
    k_ = Tensor(DType::f32, {2, tokens, 16});
    v_ = random_tensor(DType::f32, {2, tokens, 16}, 3);
    const Tensor noise = random_tensor(DType::f32, {2, tokens, 16}, 1);
    for (int64_t i = 0; i < q_.numel(); ++i) {
      const int64_t place = (i / 16) % tokens / 32;
      const float near = i % 16 == place % 16 ? 5.0f : 0.0f;
      q_.as<float>()[i] = near + 0.7f * noise.as<float>()[i];
      k_.as<float>()[i] = near - 0.7f * noise.as<float>()[i];
    }
    calls_.push_back({{.step = 3, .num_steps = 8}, grid_, 0, q_, k_, v_});
  }

  VideoGrid grid_{4, 8, 16};
  Tensor q_, k_, v_;
  std::vector<RecordedCall> calls_;
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

TEST_F(ReplayTest, RefusesNothing) {
  EXPECT_THROW(Replay(*backend_, {}, 1), Error);
  EXPECT_THROW(Replay(*backend_, calls_, 0), Error);
}

}  // namespace
}  // namespace lacuna::test
