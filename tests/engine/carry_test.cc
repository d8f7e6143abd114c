// SPDX-License-Identifier: Apache-2.0
// Skip bits carried from step to step (refresh=carry), and selections that only look.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>

#include "tests/engine/fixtures.h"

namespace lacuna::test {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

using Listed = std::vector<std::set<int32_t>>;  // per (head, query block)

class Carry : public testing::Test {
 protected:
  // `method_` with refresh=carry and a skip rule that drops all but the heaviest blocks.
  Plan plan(const char* retest, double lambda = 0.9) {
    Plan plan = parse_plan(std::string("dense:refresh=carry,retest=") + retest);
    plan.method = &method_;
    plan.skip = {SkipKind::running_max, {static_cast<float>(lambda)}};
    return plan;
  }
  Listed listed() const {
    Listed rows;
    const AttendParams& p = backend_.last;
    for (int64_t r = 0; r < int64_t{p.num_heads} * p.num_q_blocks; ++r) {
      rows.emplace_back();
      const BlockIndex& all = backend_.listed;
      for (int64_t i = all.row_begin[r]; i < all.row_begin[r + 1]; ++i)
        rows.back().insert(all.cols[static_cast<size_t>(i)]);
    }
    return rows;
  }
  // Listed blocks that the last call did not skip.
  Listed kept() const {
    Listed rows = listed();
    const AttendParams& p = backend_.last;
    const int64_t words = (p.num_k_blocks + 63) / 64;
    for (size_t r = 0; r < rows.size(); ++r)
      std::erase_if(rows[r], [&](int32_t kb) {
        return p.skip_bits[static_cast<int64_t>(r) * words + kb / 64] >> (kb % 64) & 1;
      });
    return rows;
  }

  SpyBackend backend_;
  FakeMethod method_;
  // Logits are equal within blocks, so that the rows of a block agree. 8 blocks of 16 tokens.
  Input in_ = weighted_blocks({{1, 9, 2, 4, 8, 3, 1, 5}, {2, 1, 1, 7, 1, 3, 9, 1}}, 16);
};

TEST_F(Carry, TheNextStepListsWhatThisOneKept) {
  Engine engine(backend_, policy_of(plan("3")));
  const TraceEntry first = attend(engine, site_at(4), in_);
  EXPECT_EQ(first.qk_density, 1.0);
  EXPECT_EQ(first.heads_refreshed, 2);
  const Listed all = listed();
  double before = 1.0;
  for (int step = 5; step < 7; ++step) {
    const Listed expected = kept();
    const TraceEntry entry = attend(engine, site_at(step), in_);
    EXPECT_EQ(listed(), expected) << "a block that was kept must not be dropped, and no other kept";
    EXPECT_EQ(entry.heads_refreshed, 0);
    EXPECT_LE(entry.qk_density, before);
    EXPECT_LE(entry.pv_density, entry.qk_density);
    double pairs = 0.0;
    for (const auto& row : listed()) pairs += static_cast<double>(row.size()) * 16 * 16;
    EXPECT_DOUBLE_EQ(entry.qk_density, pairs / (2.0 * 128 * 128));
    EXPECT_DOUBLE_EQ(entry.pv_density, backend_.pv_pairs / (2.0 * 128 * 128));
    before = entry.qk_density;
  }
  EXPECT_LT(before, 1.0);
  const TraceEntry again = attend(engine, site_at(7), in_);
  EXPECT_EQ(listed(), all) << "everything is tested again";
  EXPECT_EQ(again.mask_hash, first.mask_hash);
  EXPECT_EQ(again.qk_density, 1.0);
  EXPECT_EQ(again.heads_refreshed, 2);
}

// Head 0, row 0: own block of weight 1, then 4 (8), then 1 (9), which is all that beats them.
TEST_F(Carry, MarksByHand) {
  Engine engine(backend_, policy_of(plan("0")));
  attend(engine, site_at(0), in_);
  attend(engine, site_at(1), in_);
  EXPECT_EQ(listed()[0], (std::set<int32_t>{0, 1, 4}));
  EXPECT_EQ(listed()[1], (std::set<int32_t>{1})) << "the heaviest comes first";
  EXPECT_EQ(listed()[8 + 6], (std::set<int32_t>{6}));
}

// Marks age in steps, also when calls are left out.
TEST_F(Carry, RetestCountsStepsNotCalls) {
  Engine engine(backend_, policy_of(plan("3")));
  for (int step : {0, 2, 3, 4, 8, 9, 20}) attend(engine, site_at(step), in_);
  std::vector<int> selected;
  for (const auto& call : method_.calls) selected.push_back(call.site.step);
  EXPECT_THAT(selected, ElementsAre(0, 3, 8, 20));
}

TEST_F(Carry, RetestZeroNeverListsAgain) {
  Engine engine(backend_, policy_of(plan("0")));
  double before = 1.0;
  for (int step = 0; step < 40; step += 10) {
    const double density = attend(engine, site_at(step), in_).qk_density;
    EXPECT_LE(density, before);
    before = density;
  }
  EXPECT_LT(before, 0.5);
  EXPECT_EQ(method_.calls.size(), 1u);
}

// Also of a method without a mask.
TEST_F(Carry, BranchesAreApart) {
  const Input in = weighted_blocks({{1, 9, 2}}, 128);
  Plan dense = plan("8");
  dense.method = &find_method("dense");
  Engine engine(backend_, policy_of(dense));
  EXPECT_EQ(attend(engine, site_at(0), in).reason, "method");
  const TraceEntry second = attend(engine, site_at(1), in);
  EXPECT_LT(second.qk_density, 1.0);
  EXPECT_EQ(second.reason, "") << "not dense any more";
  EXPECT_EQ(attend(engine, site_at(1, 0, Branch::uncond), in).qk_density, 1.0);
}

// Carried masks stay inside the method's mask, and a retest is that mask again.
TEST_F(Carry, StartsFromTheMethodsMask) {
  method_.choose = [](const SelectArgs& args) {
    Selection s = FakeMethod::empty(args);
    for (int64_t h = 0; h < 2; ++h)
      for (int32_t qb = 0; qb < 8; ++qb)
        for (int32_t kb = 0; kb < 8; ++kb)
          if ((qb + kb) % 2 == 0) s.mask.set(h, qb, kb);
    return s;
  };
  Engine engine(backend_, policy_of(plan("2")));
  const TraceEntry first = attend(engine, site_at(0), in_);
  const Listed allowed = listed();
  const TraceEntry second = attend(engine, site_at(1), in_);
  EXPECT_LT(second.qk_density, first.qk_density);
  const Listed carried = listed();
  for (size_t r = 0; r < allowed.size(); ++r)
    for (int32_t kb : carried[r]) EXPECT_TRUE(allowed[r].contains(kb));
  EXPECT_EQ(attend(engine, site_at(2), in_).mask_hash, first.mask_hash);
}

// The last 4 of 128 tokens are text: block 7.
TEST_F(Carry, TextIsNeverCarriedAway) {
  in_.shape.grid = {1, 4, 31};
  in_.shape.text_tokens = 4;
  Engine engine(backend_, policy_of(plan("0")));
  for (int step = 0; step < 3; ++step) attend(engine, site_at(step), in_);
  const Listed rows = listed();
  for (size_t r = 0; r < rows.size(); ++r) {
    EXPECT_TRUE(rows[r].contains(7)) << "row " << r;
    if (r % 8 == 7) {
      EXPECT_EQ(rows[r].size(), 8u);
    }
  }
  EXPECT_LT(engine.trace().entries().back().qk_density, 1.0);
}

TEST_F(Carry, NeedsASkipRule) {
  EXPECT_THAT(error_of([&] { policy_of(parse_plan("dense:refresh=carry")); }),
              HasSubstr("carry without a skip rule, expected one of running_max"));
  EXPECT_EQ(parse_plan("xattention:refresh=carry,retest=4").refresh.retest, 4);
  EXPECT_EQ(parse_plan("xattention:refresh=carry").refresh.retest, 8);
}

// --- selections that only look -------------------------------------------------------------------

class Look : public testing::Test {
 protected:
  Look() {
    method_.choose = [this](const SelectArgs& args) {
      Selection s = FakeMethod::diagonal(args);
      if (method_.calls.size() > 1) return s;
      s.mask = {};
      s.wants_lse = s.wants_block_mass = s.provisional = true;
      return s;
    };
  }
  std::vector<int> selected() const {
    std::vector<int> steps;
    for (const auto& call : method_.calls) steps.push_back(call.site.step);
    return steps;
  }

  SpyBackend backend_;
  FakeMethod method_;
  Input in_ = make_input({{2, 3, 4}, 0, 2});
};

TEST_F(Look, SelectsAgainNextTimeWhateverTheRule) {
  for (const RefreshKind kind : {RefreshKind::never, RefreshKind::drift, RefreshKind::at_steps}) {
    method_.calls.clear();
    method_.observed.clear();
    Engine engine(backend_, policy_of(method_, {kind, {3}}));
    const TraceEntry first = attend(engine, site_at(3), in_);
    EXPECT_EQ(first.reason, "look");
    EXPECT_EQ(first.qk_density, 1.0);
    EXPECT_EQ(first.mask_hash, 0u);
    ASSERT_EQ(method_.observed.size(), 1u);
    for (int step : {6, 7, 8}) EXPECT_EQ(attend(engine, site_at(step), in_).reason, "");
    EXPECT_THAT(selected(), ElementsAre(3, 6));
    EXPECT_EQ(method_.observed.size(), 1u);
  }
}

TEST_F(Look, RunsWithoutTheSkipRule) {
  Engine engine(backend_, policy_of(method_, {RefreshKind::never}, parse_skip("running_max")));
  attend(engine, site_at(0), in_);
  EXPECT_EQ(backend_.last.skip, SkipKind::none);
  EXPECT_EQ(backend_.last.mask, nullptr);
  attend(engine, site_at(1), in_);
  EXPECT_EQ(backend_.last.skip, SkipKind::running_max);
}

TEST_F(Look, ObserveGetsTheArgumentsOfSelect) {
  method_.on_observe = [&](const Observation& seen) {
    ASSERT_NE(seen.args, nullptr);
    EXPECT_EQ(seen.args->q.data, in_.q.view().data);
    EXPECT_EQ(seen.args->head_ids.data(), seen.head_ids.data());
  };
  Engine engine(backend_, policy_of(method_));
  attend(engine, site_at(0), in_);
  EXPECT_EQ(method_.observed.size(), 1u);
}

// The mask of step 1 was made from what step 0 saw: drift counts from there.
TEST_F(Look, DriftCountsFromTheLook) {
  Refresh refresh{RefreshKind::drift};
  refresh.delta = 0.5;
  Engine engine(backend_, policy_of(method_, refresh));
  attend(engine, site_at(0), in_);
  const Input moved = make_input(in_.shape, "elsewhere");
  attend(engine, site_at(1), moved);
  attend(engine, site_at(2), moved);
  EXPECT_THAT(selected(), ElementsAre(0, 1, 2));
  attend(engine, site_at(3), moved);
  EXPECT_THAT(selected(), ElementsAre(0, 1, 2)) << "the anchor moved at 2";
}

TEST_F(Look, AMaskMakesNoLook) {
  method_.choose = [](const SelectArgs& args) {
    Selection s = FakeMethod::full(args);
    s.provisional = true;
    return s;
  };
  Engine engine(backend_, policy_of(method_));
  EXPECT_THAT(error_of([&] { attend(engine, site_at(0), in_); }),
              HasSubstr("fake: a provisional selection with a mask"));
}

// --- AdaSpa through the engine -------------------------------------------------------------------

class AdaSpaSteps : public testing::Test {
 protected:
  // (heads selected, cached searches) at steps 2, 3, ...
  std::vector<std::pair<int, int>> run(const char* spec, const std::vector<Input>& inputs) {
    Engine engine(backend_, policy_of(parse_plan(spec)));
    std::vector<std::pair<int, int>> seen;
    for (size_t i = 0; i < inputs.size(); ++i) {
      const int before = backend_.predictions;
      entries_.push_back(attend(engine, site_at(static_cast<int>(i) + 2), inputs[i]));
      seen.emplace_back(entries_.back().heads_refreshed, backend_.predictions - before);
    }
    return seen;
  }

  SpyBackend backend_;
  std::vector<TraceEntry> entries_;
};

using Pairs = std::vector<std::pair<int, int>>;

TEST_F(AdaSpaSteps, SearchesAtTheListedSteps) {
  std::vector<Input> inputs;
  for (int i = 0; i < 7; ++i) inputs.push_back(make_input({{2, 8, 8}, 0, 2}, std::to_string(i)));
  EXPECT_EQ(run("adaspa:block=8,refresh=at_steps,at=2+5", inputs),
            (Pairs{{2, 0}, {2, 0}, {0, 0}, {2, 1}, {0, 0}, {0, 0}, {0, 0}}));
  EXPECT_EQ(entries_[0].reason, "look");
  EXPECT_EQ(entries_[0].qk_density, 1.0);
  EXPECT_LT(entries_[1].qk_density, 0.5);
  EXPECT_EQ(entries_[2].mask_hash, entries_[1].mask_hash);
  EXPECT_NE(entries_[3].mask_hash, entries_[1].mask_hash);
  EXPECT_EQ(entries_[6].mask_hash, entries_[3].mask_hash);
}

TEST_F(AdaSpaSteps, TheFirstSearchIsDenseAttention) {
  const Input in = make_input({{2, 8, 8}, 5, 2});
  Engine engine(backend_, policy_of(parse_plan("adaspa:block=8")));
  attend(engine, site_at(0), in);
  EXPECT_LT(compare(in.out, dense_output(in)).max_abs, 1e-5);
}

// HASTE on AdaSpa: nothing moved, nothing searched; one head moved, one head searched.
TEST_F(AdaSpaSteps, DriftSearchesTheMovedHeads) {
  std::vector<Input> inputs;
  for (int i = 0; i < 5; ++i) inputs.push_back(make_input({{2, 8, 8}, 0, 3}));
  for (int i = 3; i < 5; ++i) {
    const int64_t per_head = inputs[i].q.numel() / 3;
    for (int64_t j = per_head; j < 2 * per_head; ++j) inputs[i].q.as<float>()[j] += 1.0f;
  }
  EXPECT_EQ(run("adaspa:block=8,refresh=drift,delta=0.5,gate_low=0", inputs),
            (Pairs{{3, 0}, {3, 0}, {0, 0}, {1, 1}, {0, 0}}));
}

}  // namespace
}  // namespace lacuna::test
