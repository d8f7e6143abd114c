// SPDX-License-Identifier: Apache-2.0
// Key tiles worked out by hand.
#include "lacuna/backend/cuda/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lacuna/core/block_mask.h"

namespace lacuna::cuda {
namespace {

using testing::ElementsAre;

// {key, key, half 0: valid of slot 0 and 1, half 1: the same}
std::vector<std::vector<int>> tiles(const Plan& plan, const Job& job) {
  std::vector<std::vector<int>> out;
  for (int64_t i = job.tile_begin; i < job.tile_begin + job.num_tiles; ++i) {
    const KeyTile& t = plan.tiles[static_cast<size_t>(i)];
    out.push_back({t.key[0], t.key[1], t.valid[0][0], t.valid[0][1], t.valid[1][0], t.valid[1][1]});
  }
  return out;
}

struct Call {
  AttendParams p;
  BlockMask mask;
  float param = 0.1f;

  Call(int64_t q_len, int64_t k_len, int32_t block_q, int32_t block_k) {
    p.num_heads = 1;
    p.q_len = q_len, p.k_len = k_len;
    p.block_q = block_q, p.block_k = block_k;
    p.num_q_blocks = static_cast<int32_t>((q_len + block_q - 1) / block_q);
    p.num_k_blocks = static_cast<int32_t>((k_len + block_k - 1) / block_k);
  }
  void keep(const std::vector<std::vector<int32_t>>& rows) {
    mask = BlockMask(1, p.num_q_blocks, p.num_k_blocks);
    for (size_t r = 0; r < rows.size(); ++r)
      for (const int32_t b : rows[r]) mask.set(0, static_cast<int32_t>(r), b);
    p.mask = mask.words();
  }
  void rule() {
    p.skip = SkipKind::running_max;
    p.skip_param = &param;
  }
};

using Tile = std::vector<int>;

TEST(CudaPlan, DenseSharesOneListAndPutsTheShortSlotFirst) {
  Call c(300, 200, 128, 64);
  c.p.num_heads = 2;
  const Plan plan = make_plan(c.p);
  ASSERT_EQ(plan.jobs.size(), 6u);  // rows 0, 128, 256 of two heads
  EXPECT_THAT(tiles(plan, plan.jobs[0]),
              ElementsAre(Tile{192, 0, 8, 64, 8, 64}, Tile{64, 128, 64, 64, 64, 64}));
  EXPECT_EQ(plan.jobs[0].tile_begin, plan.jobs[3].tile_begin);
  EXPECT_EQ(plan.tiles.size(), 4u);  // and once more for jobs of one half
  EXPECT_EQ(plan.jobs[2].rows[0], 44);
  EXPECT_EQ(plan.jobs[2].rows[1], 0);
  EXPECT_EQ(plan.out_tiles, 12);
}

TEST(CudaPlan, AnOddSlotStandsAloneInTheFirstTile) {
  Call c(128, 320, 128, 64);
  c.keep({{0, 2, 4}});
  const Plan plan = make_plan(c.p);
  EXPECT_THAT(tiles(plan, plan.jobs[0]),
              ElementsAre(Tile{0, 0, 64, 0, 64, 0}, Tile{128, 256, 64, 64, 64, 64}));
}

TEST(CudaPlan, AdjacentBlocksGrowTogetherWithoutMass) {
  Call c(64, 320, 64, 32);
  c.keep({{0, 1, 2, 3, 6}});
  EXPECT_THAT(tiles(make_plan(c.p), make_plan(c.p).jobs[0]),
              ElementsAre(Tile{192, 192, 32, 0, 0, 0}, Tile{0, 64, 64, 64, 0, 0}));
  float mass = 0.0f;
  c.p.block_mass = &mass;
  EXPECT_EQ(make_plan(c.p).jobs[0].num_tiles, 3);
}

TEST(CudaPlan, UnionOfTwoLists) {
  Call c(128, 256, 64, 64);
  c.keep({{0, 1}, {1, 3}});
  const Plan plan = make_plan(c.p);
  ASSERT_EQ(plan.jobs.size(), 1u);
  EXPECT_THAT(tiles(plan, plan.jobs[0]),
              ElementsAre(Tile{0, 0, 64, 0, 0, 0}, Tile{64, 192, 64, 0, 64, 64}));
  EXPECT_EQ(plan.q_blocks[0].slot[1], 1);
}

TEST(CudaPlan, RulesKeepEachListsOrder) {
  Call c(128, 256, 64, 64);
  c.keep({{0, 1, 2}, {0, 1, 2}});
  c.p.order = VisitOrder::coarse_to_fine;
  c.rule();
  const Plan plan = make_plan(c.p);
  EXPECT_EQ(plan.votes, Votes::per_slot);
  std::vector<int> order[2];
  for (const Tile& t : tiles(plan, plan.jobs[0]))
    for (int slot = 0; slot < 2; ++slot)
      for (int half = 0; half < 2; ++half)
        if (t[static_cast<size_t>(2 + 2 * half + slot)] > 0)
          order[half].push_back(t[static_cast<size_t>(slot)] / 64);
  EXPECT_THAT(order[0], ElementsAre(0, 2, 1));
  EXPECT_THAT(order[1], ElementsAre(2, 0, 1));
}

TEST(CudaPlan, LongBlocksVoteByTile) {
  Call c(64, 300, 64, 200);
  c.rule();
  const Plan plan = make_plan(c.p);
  EXPECT_EQ(plan.votes, Votes::per_tile);
  EXPECT_THAT(tiles(plan, plan.jobs[0]),
              ElementsAre(Tile{0, 64, 64, 64, 0, 0}, Tile{128, 192, 64, 8, 0, 0},
                          Tile{200, 264, 64, 36, 0, 0}));
}

TEST(CudaPlan, LongestJobsFirst) {
  Call c(256, 256, 128, 64);
  c.keep({{0}, {0, 1, 2}});
  const Plan plan = make_plan(c.p);
  EXPECT_EQ(plan.jobs[0].row[0], 128);
  EXPECT_EQ(plan.jobs[1].row[0], 0);
  EXPECT_EQ(plan.q_blocks[0].slot[0], 1);
}

TEST(CudaPlan, FoldsBitsAndPairs) {
  Call c(100, 256, 128, 64);
  c.rule();
  const Plan plan = make_plan(c.p);
  ASSERT_EQ(plan.out_tiles, 2);
  uint64_t bits = 0;
  int64_t pairs = 0;
  c.p.skip_bits = &bits, c.p.pv_pairs = &pairs;
  // Half 0 (64 rows) keeps blocks 0 and 3, half 1 (36 rows) keeps block 0 only.
  const uint8_t kept[] = {1, 1, 2, 0};
  fold_outputs(c.p, plan, kept, nullptr, nullptr);
  EXPECT_EQ(bits, 0b0110u);
  EXPECT_EQ(pairs, 64 * 128 + 36 * 64);
}

}  // namespace
}  // namespace lacuna::cuda
