// SPDX-License-Identifier: Apache-2.0
#include "lacuna/engine/refresh.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <set>

#include "tests/engine/fixtures.h"
#include "tests/support/thread_team.h"

namespace lacuna::test {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

// --- through the engine: who calls the method, and when ------------------------------------------

class Reuse : public testing::Test {
 protected:
  std::vector<int> steps_selected(Refresh refresh, std::vector<int> steps) {
    Engine engine(backend_, policy_of(method_, std::move(refresh)));
    for (int step : steps) attend(engine, site_at(step), in_);
    std::vector<int> selected;
    for (const auto& call : method_.calls) selected.push_back(call.site.step);
    method_.calls.clear();
    return selected;
  }

  SpyBackend backend_;
  FakeMethod method_;
  Input in_ = make_input({{2, 3, 4}, 0, 2});
};

TEST_F(Reuse, CallsTheMethodAtTheRightSteps) {
  EXPECT_THAT(steps_selected({}, {3, 4, 5}), ElementsAre(3, 4, 5));
  EXPECT_THAT(steps_selected({RefreshKind::never}, {3, 4, 5, 6}), ElementsAre(3));
  EXPECT_THAT(steps_selected({RefreshKind::at_steps, {5, 7}}, {3, 4, 5, 6, 7, 8}),
              ElementsAre(3, 5, 7));
  EXPECT_EQ(backend_.block_means, 0) << "only drift takes means";
  EXPECT_THAT(steps_selected({RefreshKind::drift}, {3, 4, 5}), ElementsAre(3)) << "same q and k";
  EXPECT_EQ(backend_.block_means, 6);
}

TEST_F(Reuse, MakesNoPredictorCallAndKeepsTheMask) {
  Engine engine(backend_, policy_of(parse_plan("xattention:block=8,stride=4,refresh=never")));
  const TraceEntry first = attend(engine, site_at(0), in_);
  EXPECT_EQ(backend_.predictions, 1);
  for (int step = 1; step < 5; ++step) {
    const TraceEntry entry =
        attend(engine, site_at(step), make_input(in_.shape, "step" + std::to_string(step)));
    EXPECT_EQ(entry.heads_refreshed, 0);
    EXPECT_EQ(entry.mask_hash, first.mask_hash);
    EXPECT_EQ(entry.qk_density, first.qk_density);
  }
  EXPECT_EQ(backend_.predictions, 1);
}

TEST_F(Reuse, SitesDoNotShareMasksOrStates) {
  method_.choose = FakeMethod::diagonal;
  Engine engine(backend_, policy_of(method_, {RefreshKind::never}));
  for (int round = 0; round < 2; ++round)
    for (int layer : {0, 1})
      for (Branch branch : {Branch::cond, Branch::uncond})
        for (int expert : {0, 1}) attend(engine, site_at(round, layer, branch, expert), in_);
  ASSERT_EQ(method_.calls.size(), 8u);
  std::set<State*> states;
  for (const auto& call : method_.calls) {
    EXPECT_EQ(call.site.step, 0);
    states.insert(call.state);
  }
  EXPECT_EQ(states.size(), 8u);
}

TEST_F(Reuse, ForgetsOnResetStepBackShapeAndRule) {
  Policy policy;
  Rule first, second, dense;
  first.match.step_end = 10;
  dense.match.step_begin = 10;
  dense.match.step_end = 20;
  first.plan.method = second.plan.method = &method_;
  first.plan.refresh.kind = second.plan.refresh.kind = RefreshKind::never;
  policy.add(first);
  policy.add(dense);
  policy.add(second);
  Engine engine(backend_, policy);
  const auto calls_after = [&](int step, const Input& in) {
    attend(engine, site_at(step), in);
    return method_.calls.size();
  };
  EXPECT_EQ(calls_after(1, in_), 1u);
  EXPECT_EQ(calls_after(1, in_), 1u) << "the same step twice is no new generation";
  EXPECT_EQ(calls_after(0, in_), 2u) << "step back";
  EXPECT_EQ(calls_after(12, in_), 2u) << "dense in between";
  EXPECT_EQ(calls_after(20, in_), 3u) << "another rule";
  EXPECT_EQ(calls_after(21, make_input({{2, 3, 5}, 0, 2})), 4u) << "another grid";
  EXPECT_EQ(calls_after(22, make_input({{2, 3, 5}, 0, 3})), 5u) << "more heads";
  EXPECT_EQ(calls_after(23, make_input({{2, 3, 5}, 0, 3})), 5u);
  engine.reset();
  EXPECT_EQ(calls_after(24, make_input({{2, 3, 5}, 0, 3})), 6u);
}

// Head 1 alone moves: only its row of the mask changes, and the method sees that head only.
TEST_F(Reuse, DriftSelectsForTheMovedHeadOnly) {
  Refresh refresh{RefreshKind::drift};
  refresh.delta = 0.5;
  refresh.gate_low = 0.0;
  method_.choose = FakeMethod::diagonal;
  Engine engine(backend_, policy_of(method_, refresh));
  const TraceEntry first = attend(engine, site_at(0), in_);
  const int64_t per_head = in_.q.numel() / 2;
  for (int64_t i = per_head; i < 2 * per_head; ++i) in_.q.as<float>()[i] += 1.0f;
  method_.choose = FakeMethod::full;
  const TraceEntry second = attend(engine, site_at(1), in_);
  ASSERT_EQ(method_.calls.size(), 2u);
  EXPECT_THAT(method_.calls[1].heads, ElementsAre(1));
  EXPECT_EQ(second.heads_refreshed, 1);
  // 24 tokens in blocks of 16 and 8. Head 0: own block, and block 0 for row 1: 16*16 + 8*24 of 576.
  EXPECT_DOUBLE_EQ(second.qk_density, 0.5 * (448.0 / 576.0 + 1.0));
  EXPECT_LT(first.qk_density, second.qk_density);
  attend(engine, site_at(2), in_);
  EXPECT_EQ(method_.calls.size(), 2u) << "the anchor moved";
}

// --- the rule itself -----------------------------------------------------------------------------

constexpr int64_t kHeads = 10, kTokens = 4, kDim = 2;

class Drift : public testing::Test {
 protected:
  Drift() {
    for (Tensor* x : {&q_, &k_}) std::fill_n(x->as<float>(), x->numel(), 0.0f);
    fill(q_, 0, kHeads, 1.0f);
    fill(k_, 0, kHeads, 2.0f);
    rule_.kind = RefreshKind::drift;
    rule_.relative = false;
    rule_.delta = 0.5;
  }
  // Channel 0 of every token of heads [begin, end).
  void fill(const Tensor& x, int64_t begin, int64_t end, float value) {
    for (int64_t i = begin * kTokens; i < end * kTokens; ++i) x.as<float>()[i * kDim] = value;
  }
  std::vector<int32_t> step() {
    const auto heads = state_.decide(rule_, site_at(0), q_, k_, *backend_, workspace_);
    const std::vector<int32_t> result(heads.begin(), heads.end());
    if (!result.empty()) state_.selected();
    return result;
  }

  Tensor q_{DType::f32, {kHeads, kTokens, kDim}}, k_{DType::f32, {kHeads, kTokens, kDim}};
  Refresh rule_;
  RefreshState state_;
  Workspace workspace_;
  std::unique_ptr<Backend> backend_ = make_backend("ref");
};

TEST_F(Drift, TheFirstCallSelectsAll) {
  EXPECT_EQ(step(), all_heads(kHeads));
}

TEST_F(Drift, TheGateCountsTheHeadsOfAllProcesses) {
  // Of ten heads three move, all of them among the four of the first process: 75 % of its own, but
  // 30 % of all, below the gate.
  rule_.gate_low = 0.4, rule_.gate_high = 1.0;
  in_team(2, [&](Team& team) {
    const int64_t first = team.rank() == 0 ? 0 : 4, heads = team.rank() == 0 ? 4 : 6;
    const auto backend = make_backend("ref");
    Workspace workspace;
    RefreshState state;
    const Tensor q = copy_of(q_.view().slice(first, first + heads));
    const Tensor k = copy_of(k_.view().slice(first, first + heads));
    const HeadShare share{&team, first};
    const auto decide = [&] {
      const auto ids = state.decide(rule_, site_at(0), q, k, *backend, workspace, share);
      const auto count = ids.size();
      if (count > 0) state.selected();
      return count;
    };
    EXPECT_EQ(decide(), static_cast<size_t>(heads));
    if (team.rank() == 0) fill(q, 0, 3, 9.0f);
    EXPECT_EQ(decide(), 0u);
    if (team.rank() == 1) fill(q, 0, 1, 9.0f);  // the fourth: at the gate, nothing changes
    EXPECT_EQ(decide(), team.rank() == 0 ? 3u : 1u);
  });
}

TEST_F(Drift, TheBoundItselfReuses) {
  step();
  fill(q_, 0, kHeads, 1.25f);
  fill(k_, 0, kHeads, 1.75f);  // d = 0.25 + 0.25
  EXPECT_THAT(step(), IsEmpty());
  fill(k_, 0, kHeads, 1.6875f);
  EXPECT_EQ(step(), all_heads(kHeads));
}

TEST_F(Drift, RelativeDividesByTheAnchor) {
  rule_.relative = true;
  step();
  fill(q_, 0, kHeads, 1.25f);
  fill(k_, 0, kHeads, 2.5f);  // 0.25 / 1 + 0.5 / 2
  EXPECT_THAT(step(), IsEmpty());
  fill(k_, 0, kHeads, 2.625f);
  EXPECT_EQ(step(), all_heads(kHeads));
}

TEST_F(Drift, RelativeToZeroIsInfiniteUnlessNothingMoved) {
  rule_.relative = true;
  fill(q_, 0, kHeads, 0.0f);
  step();
  EXPECT_THAT(step(), IsEmpty());
  fill(q_, 0, kHeads, 1e-6f);
  EXPECT_EQ(step(), all_heads(kHeads));
}

TEST_F(Drift, SmallMovesAddUpBecauseTheAnchorStays) {
  step();
  fill(q_, 0, kHeads, 1.375f);
  EXPECT_THAT(step(), IsEmpty());
  fill(q_, 0, kHeads, 1.75f);
  EXPECT_EQ(step(), all_heads(kHeads));
  fill(q_, 0, kHeads, 1.375f);
  EXPECT_THAT(step(), IsEmpty()) << "measured from 1.75 now";
}

TEST_F(Drift, LayerGate) {
  step();
  fill(q_, 0, 3, 2.0f);
  EXPECT_THAT(step(), IsEmpty()) << "3 of 10 < 0.4";
  fill(q_, 0, 4, 2.0f);
  EXPECT_THAT(step(), ElementsAre(0, 1, 2, 3)) << "at the bound heads decide";
  fill(q_, 0, 8, 3.0f);
  EXPECT_THAT(step(), ElementsAre(0, 1, 2, 3, 4, 5, 6, 7));
  fill(q_, 0, 9, 4.0f);
  EXPECT_EQ(step(), all_heads(kHeads)) << "9 of 10 > 0.8";
}

// Two tokens move up, two down: one mean sees nothing, a mean per two tokens does.
TEST_F(Drift, PoolSeesOppositeMoves) {
  for (const int pool : {0, 2}) {
    state_ = {};
    rule_.pool = pool;
    fill(q_, 0, kHeads, 1.0f);
    step();
    for (int64_t i = 0; i < kHeads * kTokens; ++i)
      q_.as<float>()[i * kDim] = i % kTokens < 2 ? 2.0f : 0.0f;
    EXPECT_EQ(step().size(), pool == 0 ? 0u : 10u) << "pool " << pool;
  }
}

TEST_F(Drift, NotANumberSelects) {
  step();
  fill(q_, 0, kHeads, std::numeric_limits<float>::quiet_NaN());
  EXPECT_EQ(step(), all_heads(kHeads));
}

// A selection that failed must not count: the anchor and the mask stay as they were.
TEST_F(Drift, WithoutSelectionTheHeadIsAskedAgain) {
  step();
  fill(q_, 0, kHeads, 2.0f);
  const auto heads = state_.decide(rule_, site_at(0), q_, k_, *backend_, workspace_);
  EXPECT_EQ(heads.size(), 10u);
  EXPECT_EQ(step().size(), 10u);
}

}  // namespace
}  // namespace lacuna::test
