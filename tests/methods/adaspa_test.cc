// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "lacuna/methods/selection.h"
#include "tests/methods/fixtures.h"

namespace lacuna::test {
namespace {

using Values = std::initializer_list<std::pair<const char*, double>>;

constexpr int64_t kBlock = 8;

class AdaSpa : public testing::Test {
 protected:
  Params params(Values values) {
    Params p = params_of(method_, {{"block", kBlock}});
    for (const auto& [name, value] : values) p.set(name, value);
    return p;
  }
  BlockMask run(const Input& in, Values values) {
    return select(method_, params(values), in, *backend_).mask;
  }
  // Blocks kept by every row of each head; -1 where rows differ.
  std::vector<int> budgets(const BlockMask& mask) {
    std::vector<int> counts;
    for (int64_t h = 0; h < mask.num_heads(); ++h) {
      for (int32_t qb = 0; qb < mask.num_q_blocks(); ++qb) {
        int count = 0;
        for (int32_t kb = 0; kb < mask.num_k_blocks(); ++kb) count += mask.get(h, qb, kb);
        if (qb == 0) counts.push_back(count);
        if (count != counts.back()) counts.back() = -1;
      }
    }
    return counts;
  }

  const Method& method_ = find_method("adaspa");
  std::unique_ptr<Backend> backend_ = make_backend("ref");
};

TEST_F(AdaSpa, KeepsTheHeaviestBlocksOfEveryRow) {
  const Input in = weighted_blocks({{1, 9, 2, 4}}, kBlock);
  EXPECT_EQ(picture(run(in, {{"density", 0.25}, {"tiers", 0}})), Picture(4, ".#.."));
  EXPECT_EQ(picture(run(in, {{"density", 0.5}, {"tiers", 0}})), Picture(4, ".#.#"));
  EXPECT_EQ(picture(run(in, {{"density", 0.01}, {"tiers", 0}})), Picture(4, ".#.."));
  EXPECT_EQ(picture(run(in, {{"density", 1.0}, {"tiers", 0}})), Picture(4, "####"));
}

// k = round(density n), halves to even: 10 blocks.
TEST_F(AdaSpa, BudgetsRoundAsPublished) {
  const Input in = make_input({{1, 10, 8}, 0, 1});
  for (const auto& [density, k] :
       {std::pair{0.2, 2}, {0.25, 2}, {0.26, 3}, {0.34, 3}, {0.35, 4}, {0.649, 6}})
    EXPECT_EQ(budgets(run(in, {{"density", density}, {"tiers", 0}})), std::vector<int>{k})
        << density;
}

TEST_F(AdaSpa, TheFirstSelectionOnlyLooks) {
  const Input in = make_input({{2, 5, 9}, 7, 2});
  Steps steps(method_, params({}), *backend_);
  const BlockMask first = steps.select(in).mask;
  EXPECT_EQ(steps.looks, 1);
  const int64_t rows = static_cast<int64_t>(steps.mass.size()) / first.num_k_blocks();
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = steps.mass.data() + r * first.num_k_blocks();
    EXPECT_NEAR(std::accumulate(row, row + first.num_k_blocks(), 0.0), 1.0, 1e-5) << "row " << r;
  }
  EXPECT_EQ(steps.select(in).mask, first) << "cached search of the same q and k";
  EXPECT_EQ(steps.select(in, {1}).mask, pick_heads({.mask = first}, std::vector{1}).mask);
  EXPECT_EQ(steps.looks, 1) << "looks once";
}

// q drifts: the search sees the new q under the old normaliser.
TEST_F(AdaSpa, LaterSearchesFollowTheInput) {
  Steps steps(method_, params({{"density", 0.25}, {"tiers", 0}}), *backend_);
  EXPECT_EQ(picture(steps.select(weighted_blocks({{1, 9, 2, 4}}, kBlock)).mask),
            Picture(4, ".#.."));
  EXPECT_EQ(picture(steps.select(weighted_blocks({{1, 3, 70, 4}}, kBlock)).mask),
            Picture(4, "..#."));
}

// 8 blocks at density 1/2: tiers of 2, 4 and 6. Mass of the two heaviest: 0.985, 0.25, 0.4, 0.5.
TEST_F(AdaSpa, ThreeTiersAroundTheBudget) {
  const Weights weights = {{200, 200, 1, 1, 1, 1, 1, 1},
                           {1, 1, 1, 1, 1, 1, 1, 1},
                           {2, 2, 1, 1, 1, 1, 1, 1},
                           {3, 3, 1, 1, 1, 1, 1, 1}};
  const Input in = weighted_blocks(weights, kBlock);
  EXPECT_EQ(budgets(run(in, {{"density", 0.5}})), (std::vector<int>{2, 6, 4, 4}));
  EXPECT_EQ(budgets(run(in, {{"density", 0.5}, {"min_recall", 0.99}})),
            (std::vector<int>{4, 4, 4, 4}));
  EXPECT_EQ(budgets(run(in, {{"density", 0.5}, {"min_recall", 0.45}})),
            (std::vector<int>{2, 6, 6, 2}));
  EXPECT_EQ(budgets(run(in, {{"density", 0.5}, {"tiers", 0}})), (std::vector<int>{4, 4, 4, 4}));
}

// All four are easy: half of them, the best, may be; the others pay for it.
TEST_F(AdaSpa, AtMostHalfTheHeadsAreEasy) {
  Weights weights;
  for (const double w : {100.0, 400.0, 200.0, 300.0}) weights.push_back({w, 1, 1, 1, 1, 1, 1, w});
  EXPECT_EQ(budgets(run(weighted_blocks(weights, kBlock), {{"density", 0.5}})),
            (std::vector<int>{6, 2, 6, 2}));
  weights.pop_back();  // three heads: one
  EXPECT_EQ(budgets(run(weighted_blocks(weights, kBlock), {{"density", 0.5}})),
            (std::vector<int>{6, 2, 4}));
}

TEST_F(AdaSpa, TiersKeepTheMeanBudget) {
  const Input in = make_input({{4, 8, 16}, 0, 6}, "tiers");
  for (const double min_recall : {0.3, 0.5, 0.7}) {
    const std::vector<int> counts =
        budgets(run(in, {{"density", 0.25}, {"min_recall", min_recall}}));
    EXPECT_EQ(std::accumulate(counts.begin(), counts.end(), 0), 6 * 16) << min_recall;
    EXPECT_THAT(counts, testing::Each(testing::AnyOf(8, 16, 24)));
  }
}

// Heads searched again later compete with what is known of the others.
TEST_F(AdaSpa, ASubsetSearchedAgainKeepsItsTier) {
  const Input in = weighted_blocks(
      {{200, 200, 1, 1, 1, 1, 1, 1}, {1, 1, 1, 1, 1, 1, 1, 1}, {2, 2, 1, 1, 1, 1, 1, 1}}, kBlock);
  Steps steps(method_, params({{"density", 0.5}}), *backend_);
  const Selection all = steps.select(in);
  EXPECT_EQ(budgets(all.mask), (std::vector<int>{2, 6, 4}));
  EXPECT_EQ(steps.select(in, {1, 2}).mask, pick_heads(all, std::vector{1, 2}).mask);
}

TEST_F(AdaSpa, DensityPerHead) {
  Params p = params({{"tiers", 0}});
  p.set_per_head("density", {0.25, 0.75});
  const Input in = weighted_blocks(Weights(2, {1, 9, 2, 4}), kBlock);
  EXPECT_EQ(budgets(select(method_, p, in, *backend_).mask), (std::vector<int>{1, 3}));
}

// Text comes on top: the last 4 of 32 tokens; so does the first frame, 12 tokens: blocks 0 and 1.
TEST_F(AdaSpa, SinksComeOnTop) {
  Input in = weighted_blocks({{1, 2, 9, 4}}, kBlock);
  in.shape.grid = {1, 1, 28};
  in.shape.text_tokens = 4;
  EXPECT_EQ(picture(run(in, {{"density", 0.25}, {"tiers", 0}})),
            (Picture{"..##", "..##", "..##", "####"}));
  in.shape.grid = {2, 3, 4};
  in.shape.text_tokens = 8;
  EXPECT_EQ(picture(run(in, {{"density", 0.25}, {"tiers", 0}, {"first_frame", 1}})),
            (Picture{"####", "####", "####", "####"}));
  in.shape.grid = {4, 2, 4};
  in.shape.text_tokens = 0;
  EXPECT_EQ(picture(run(in, {{"density", 0.25}, {"tiers", 0}, {"first_frame", 1}})),
            (Picture{"####", "#.#.", "#.#.", "#.#."}));
}

TEST_F(AdaSpa, RejectsValuesThatDoNotFit) {
  EXPECT_THAT(error_of([&] {
                method_.check(params({{"density", 0.7}}));
              }),
              testing::HasSubstr("density 0.7, expected at most 2/3 with tiers=1"));
  EXPECT_EQ(error_of([&] { method_.check(params({{"density", 0.7}, {"tiers", 0}})); }), "");
  Params p = params({});
  p.set_per_head("block", {8, 16});
  EXPECT_THAT(error_of([&] { method_.check(p); }), testing::HasSubstr("block per head"));
}

}  // namespace
}  // namespace lacuna::test
