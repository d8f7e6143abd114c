// SPDX-License-Identifier: Apache-2.0
#include "lacuna/calibrate/vote.h"

#include <gtest/gtest.h>

#include <cmath>

#include "lacuna/core/error.h"
#include "lacuna/core/rng.h"

namespace lacuna {
namespace {

constexpr int32_t kRows = 5, kColumns = 70;
constexpr int64_t kHeads = 2;

bool drawn(int prompt, int64_t i) {
  return hash_uniform("prompt" + std::to_string(prompt), static_cast<uint64_t>(i)) > 0.3;
}

std::vector<uint8_t> votes_of(int num_prompts) {
  std::vector<uint8_t> votes(kHeads * kRows * kColumns);
  for (size_t i = 0; i < votes.size(); ++i)
    for (int p = 0; p < num_prompts; ++p) votes[i] += drawn(p, static_cast<int64_t>(i));
  return votes;
}

BlockMask vote_of(int num_prompts, double share) {
  return vote(votes_of(num_prompts), kHeads, kRows, kColumns, num_prompts, share);
}

// The mask of one prompt.
BlockMask mask_of(int prompt) {
  BlockMask mask(kHeads, kRows, kColumns);
  for (int64_t h = 0; h < kHeads; ++h)
    for (int32_t qb = 0; qb < kRows; ++qb)
      for (int32_t kb = 0; kb < kColumns; ++kb)
        if (drawn(prompt, (h * kRows + qb) * kColumns + kb)) mask.set(h, qb, kb);
  return mask;
}

TEST(Vote, OneIsTheIntersectionAndOneOfAllTheUnion) {
  BlockMask both = mask_of(0), either = mask_of(0);
  both &= mask_of(1), either |= mask_of(1);
  EXPECT_EQ(vote_of(2, 1.0), both);
  EXPECT_EQ(vote_of(2, 0.5), either);
  EXPECT_EQ(vote_of(2, 0.01), either);
  EXPECT_EQ(vote_of(2, 0.51), both);
}

TEST(Vote, IsMonotoneInTheShare) {
  BlockMask previous = vote_of(7, 0.01);
  int64_t first = previous.count(0);
  for (double share : {0.2, 0.3, 0.5, 0.7, 0.9, 1.0}) {
    const BlockMask mask = vote_of(7, share);
    for (int64_t h = 0; h < kHeads; ++h) EXPECT_LE(mask.count(h), previous.count(h)) << share;
    BlockMask both = mask;
    both &= previous;
    // Rows that nobody agrees on keep two blocks, one of which may be new.
    EXPECT_LE(mask.count(0) - both.count(0), kRows);
    previous = mask;
  }
  EXPECT_LT(previous.count(0), first);
}

TEST(Vote, ThreeTenthsOfTenPromptsAreThree) {  // 0.3 * 10 is above 3 in binary
  const std::vector<uint8_t> votes = {2, 3, 4};
  const BlockMask mask = vote(votes, 1, 1, 3, 10, 0.3);
  EXPECT_FALSE(mask.get(0, 0, 0));
  EXPECT_TRUE(mask.get(0, 0, 1));
  EXPECT_TRUE(mask.get(0, 0, 2));
}

TEST(Vote, ARowWithoutAgreementKeepsDiagonalAndMostVoted) {
  const std::vector<uint8_t> votes = {0, 1, 2, 2, 3, 0, 0, 0};  // 2 x 4
  const BlockMask mask = vote(votes, 1, 2, 4, 4, 0.75);
  EXPECT_EQ(intervals(mask, 0, 0), (std::vector<Interval>{{0, 1}, {2, 3}}));
  EXPECT_EQ(intervals(mask, 0, 1), (std::vector<Interval>{{0, 1}}));
  mask.validate();
}

TEST(Intervals, RoundTripAndMergingOnlyAdds) {
  const BlockMask mask = mask_of(3);
  for (int32_t gap : {0, 1, 3, 100}) {
    BlockMask merged = mask;
    merge_intervals(merged, gap);
    BlockMask both = merged;
    both &= mask;
    EXPECT_EQ(both, mask);
    BlockMask rebuilt(kHeads, kRows, kColumns);
    for (int64_t h = 0; h < kHeads; ++h)
      for (int32_t qb = 0; qb < kRows; ++qb) {
        const auto runs = intervals(merged, h, qb);
        for (size_t i = 0; i < runs.size(); ++i) {
          if (i > 0) {
            EXPECT_GT(runs[i].begin - runs[i - 1].end, gap);
          }
          for (int32_t kb = runs[i].begin; kb < runs[i].end; ++kb) rebuilt.set(h, qb, kb);
        }
        // Ends stay where they were.
        EXPECT_EQ(runs.front().begin, intervals(mask, h, qb).front().begin);
        EXPECT_EQ(runs.back().end, intervals(mask, h, qb).back().end);
      }
    EXPECT_EQ(rebuilt, merged);
    if (gap == 0) {
      EXPECT_EQ(merged, mask);
    }
  }
}

TEST(ShareSteps, AlikeStepsHaveTheUnion) {
  BlockMask a = mask_of(0), b = a, c = mask_of(1);
  b.set(1, 2, 0), b.set(1, 2, 1), b.set(1, 2, 2);
  ASSERT_GT(mask_iou(a, b, 1), 0.97);
  ASSERT_LT(mask_iou(a, b, 1), 1.0);
  EXPECT_EQ(mask_iou(a, b, 0), 1.0);
  ASSERT_LT(mask_iou(a, c, 0), 0.97);
  std::vector<BlockMask> masks = {a, c, b};
  EXPECT_EQ(share_steps(masks, 0.97), (std::vector<int>{0, 1, 0}));
  BlockMask all = a;
  all |= b;
  EXPECT_EQ(masks[0], all);
  EXPECT_EQ(masks[2], all);
  EXPECT_EQ(masks[1], c);
  masks = {a, c, b};
  EXPECT_EQ(share_steps(masks, 1.01), (std::vector<int>{0, 1, 2}));
  EXPECT_EQ(masks[0], a);
}

// CalibAtt (arXiv 2603.05503) with its published constants.
TEST(EnergySchedule, PublishedValues) {
  const EnergySchedule published;
  const auto at = [&](int64_t tokens, int step) { return published.at(step, 50, tokens); };
  EXPECT_NEAR(at(32760, 0), 0.990, 5e-4);
  EXPECT_NEAR(at(32760, 1), 0.950, 5e-4);
  EXPECT_NEAR(at(32760, 5), 0.872, 5e-4);
  EXPECT_NEAR(at(32760, 10), 0.848, 5e-4);
  EXPECT_NEAR(at(75600, 5), 0.920, 5e-4);
  EXPECT_NEAR(at(75600, 49), 0.903, 5e-4);
  const EnergySchedule distilled{.floor = 0.763, .start = 0.863, .decay = 5.64};
  const double want[] = {0.863, 0.787, 0.769, 0.765};
  for (int step = 0; step < 4; ++step) EXPECT_NEAR(distilled.at(step, 4, 1000), want[step], 1e-3);
  EXPECT_LE(published.at(49, 50, 1000000), 0.99);  // the law in N ends at C
  const EnergySchedule to_zero{.floor = 0.0, .start = 0.8, .decay = 8.0};
  EXPECT_EQ(to_zero.at(0, 50, 32760), 0.8);
  EXPECT_NEAR(to_zero.at(25, 50, 32760), 0.8 * std::exp(-4.0), 1e-12);
}

TEST(Vote, RefusesBadSizes) {
  EXPECT_THROW(vote(votes_of(1), 1, 1, 1, 1, 0.5), Error);
  EXPECT_THROW(vote_of(2, 0.0), Error);
  EXPECT_THROW(vote_of(2, 1.1), Error);
}

}  // namespace
}  // namespace lacuna
