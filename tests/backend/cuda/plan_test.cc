// SPDX-License-Identifier: Apache-2.0
// Jobs and key tiles: worked out by hand, and what must hold for any mask. The kernels that make
// tiles and fold what attention leaves behind run on the emulator.
#include "lacuna/backend/cuda/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "lacuna/backend/cuda/device_plan.h"
#include "lacuna/backend/cuda/emulator/emulated_device.h"
#include "lacuna/core/block_mask.h"
#include "tests/support/attend_case.h"

namespace lacuna::cuda {
namespace {

using test::AttendCase;
using test::AttendSpec;
using testing::ElementsAre;

constexpr size_t kNoLimit = size_t{1} << 40;

std::unique_ptr<Device> emulated() {
  return emulator::make_emulated_device(Family::sm90, 1);
}

// A chunk of a plan with its tiles, as the device has them.
struct Made {
  std::vector<Job> jobs;  // of the chunk
  std::vector<KeyTile> tiles;
};

std::vector<Made> make(const AttendParams& p, const Plan& plan) {
  const auto device = emulated();
  const DevicePlan on_device(*device, p, plan);
  std::vector<Made> all;
  for (size_t i = 0; i < plan.chunks.size(); ++i) {
    const Plan::Chunk& chunk = plan.chunks[i];
    on_device.make_tiles(i);
    Made made;
    made.jobs.resize(static_cast<size_t>(chunk.jobs));
    device->download(made.jobs.data(), on_device.jobs() + chunk.first_job,
                     made.jobs.size() * sizeof(Job));
    made.tiles.resize(static_cast<size_t>(chunk.tiles));
    if (chunk.tiles > 0)
      device->download(made.tiles.data(), on_device.tiles(), made.tiles.size() * sizeof(KeyTile));
    all.push_back(made);
  }
  return all;
}

// {key, key, half 0: valid of slot 0 and 1, half 1: the same}
using Tile = std::vector<int>;
std::vector<Tile> tiles_of(const Made& made, size_t job_index) {
  const Job& job = made.jobs[job_index];
  std::vector<Tile> out;
  for (int64_t i = job.tile_begin; i < job.tile_begin + job.num_tiles; ++i) {
    const KeyTile& t = made.tiles[static_cast<size_t>(i)];
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
    p.order = VisitOrder::coarse_to_fine;
  }
  Made made() const { return make(p, make_plan(p, kNoLimit)).at(0); }
  std::vector<Tile> tiles(size_t job = 0) const { return tiles_of(made(), job); }
};

TEST(CudaPlan, DenseSharesOneListAndPutsTheShortSlotFirst) {
  Call c(300, 200, 128, 64);
  c.p.num_heads = 2;
  const Plan plan = make_plan(c.p, kNoLimit);
  const Made made = make(c.p, plan).at(0);
  ASSERT_EQ(plan.jobs.size(), 6u);  // rows 0, 128, 256 of two heads
  EXPECT_THAT(tiles_of(made, 0),
              ElementsAre(Tile{192, 0, 8, 64, 8, 64}, Tile{64, 128, 64, 64, 64, 64}));
  EXPECT_EQ(plan.jobs[0].tile_begin, plan.jobs[3].tile_begin);
  EXPECT_EQ(made.tiles.size(), 4u);  // and once more for jobs of one half
  EXPECT_EQ(plan.jobs[2].rows[0], 44);
  EXPECT_EQ(plan.jobs[2].rows[1], 0);
}

TEST(CudaPlan, AnOddSlotStandsAloneInTheFirstTile) {
  Call c(128, 320, 128, 64);
  c.keep({{0, 2, 4}});
  EXPECT_THAT(c.tiles(), ElementsAre(Tile{0, 0, 64, 0, 64, 0}, Tile{128, 256, 64, 64, 64, 64}));
}

TEST(CudaPlan, AdjacentBlocksGrowTogetherWithoutMass) {
  Call c(64, 320, 64, 32);
  c.keep({{0, 1, 2, 3, 6}});
  EXPECT_THAT(c.tiles(), ElementsAre(Tile{192, 192, 32, 0, 0, 0}, Tile{0, 64, 64, 64, 0, 0}));
  float mass = 0.0f;
  c.p.block_mass = &mass;
  EXPECT_EQ(c.tiles().size(), 3u);
}

TEST(CudaPlan, UnionOfTwoLists) {
  Call c(128, 256, 64, 64);
  c.keep({{0, 1}, {1, 3}});
  EXPECT_EQ(c.made().jobs.size(), 1u);
  EXPECT_THAT(c.tiles(), ElementsAre(Tile{0, 0, 64, 0, 0, 0}, Tile{64, 192, 64, 0, 64, 64}));
}

// Both halves go to their own block first: 0 and 2 of four. Then 0, 2, 1, 3 for whoever has not.
TEST(CudaPlan, RulesKeepEachListsOrder) {
  Call c(128, 256, 64, 64);
  c.keep({{0, 1, 2}, {0, 1, 2}});
  c.rule();
  EXPECT_EQ(make_plan(c.p, kNoLimit).votes, Votes::per_slot);
  EXPECT_THAT(c.tiles(), ElementsAre(Tile{0, 0, 64, 0, 0, 0}, Tile{128, 0, 0, 0, 64, 64},
                                     Tile{128, 64, 64, 64, 0, 64}));
}

TEST(CudaPlan, LongBlocksVoteByTile) {
  Call c(64, 300, 64, 200);
  c.rule();
  EXPECT_EQ(make_plan(c.p, kNoLimit).votes, Votes::per_tile);
  EXPECT_THAT(c.tiles(), ElementsAre(Tile{0, 64, 64, 64, 0, 0}, Tile{128, 192, 64, 8, 0, 0},
                                     Tile{200, 264, 64, 36, 0, 0}));
}

TEST(CudaPlan, LongestJobsFirst) {
  Call c(256, 256, 128, 64);
  c.keep({{0}, {0, 1, 2}});
  const Made made = c.made();
  EXPECT_EQ(made.jobs[0].row[0], 128);
  EXPECT_EQ(made.jobs[1].row[0], 0);
}

TEST(CudaPlan, CountsThePairsOfTheMask) {
  Call c(100, 250, 64, 64);
  c.keep({{0, 3}, {1}});
  int64_t pairs = 0;
  c.p.pv_pairs = &pairs;
  EXPECT_THAT(make_plan(c.p, kNoLimit).pairs, ElementsAre(64 * (64 + 58) + 36 * 64));
}

// --- any mask ----------------------------------------------------------------------------------

struct Visit {
  int key, keys;
  bool operator==(const Visit&) const = default;
};

// What a half visits, slot by slot (or tile by tile), from the jobs and tiles.
std::vector<Visit> visits(const Made& made, const Job& job, int half, bool by_tile) {
  std::vector<Visit> out;
  for (int64_t i = job.tile_begin; i < job.tile_begin + job.num_tiles; ++i) {
    const KeyTile& t = made.tiles.at(static_cast<size_t>(i));
    if (by_tile) {
      const int keys = t.valid[half][0] + t.valid[half][1];
      if (t.valid[half][1] > 0) {
        EXPECT_EQ(t.key[1], t.key[0] + t.valid[half][0]);
      }
      if (keys > 0) out.push_back({t.key[0], keys});
      continue;
    }
    for (int slot = 0; slot < 2; ++slot)
      if (t.valid[half][slot] > 0) out.push_back({t.key[slot], t.valid[half][slot]});
  }
  return out;
}

// Kept keys of a row in visit order, cut into pieces of at most `unit` from each block's start.
std::vector<Visit> expected_visits(const AttendCase& c, const BlockIndex& listed, int32_t call,
                                   int32_t q_block, int unit) {
  std::vector<Visit> out;
  const auto row = static_cast<size_t>(call * c.q_layout().num_blocks + q_block);
  for (int64_t i = listed.row_begin[row]; i < listed.row_begin[row + 1]; ++i) {
    const int32_t b = listed.cols[static_cast<size_t>(i)];
    const auto end = static_cast<int>(c.k_layout().end(call, b));
    for (auto key = static_cast<int>(c.k_layout().begin(call, b)); key < end; key += unit)
      out.push_back({key, std::min(unit, end - key)});
  }
  return out;
}

std::vector<int> keys_of(const std::vector<Visit>& visits) {
  std::vector<int> keys;
  for (const Visit& v : visits)
    for (int i = 0; i < v.keys; ++i) keys.push_back(v.key + i);
  std::sort(keys.begin(), keys.end());
  return keys;
}

void check_half(const AttendCase& c, const BlockIndex& listed, const Plan& plan, const Made& made,
                const Job& job, int half, bool mass) {
  int32_t q_block = 0;
  while (c.q_layout().end(job.call, q_block) <= job.row[half]) ++q_block;
  const int unit = plan.votes == Votes::per_tile ? kTileKeys : kSlotKeys;
  const std::vector<Visit> want = expected_visits(c, listed, job.call, q_block, unit);
  const std::vector<Visit> got = visits(made, job, half, plan.votes == Votes::per_tile);
  EXPECT_EQ(keys_of(got), keys_of(want)) << "row " << job.row[half];
  // Blocks that vote must come whole and in order, blocks that are weighed whole.
  if (plan.votes != Votes::none) {
    EXPECT_TRUE(got == want) << "row " << job.row[half];
  }
  if (mass) {
    for (const Visit& v : got)
      EXPECT_TRUE(std::find(want.begin(), want.end(), v) != want.end()) << v.key;
  }
  if (!plan.whole) {
    EXPECT_LE(job.row[half] + job.rows[half], c.q_layout().end(job.call, q_block));
  }
}

// Where slots must be masked comes first, and what a tile does not use repeats what it does.
void check_tiles(const Plan& plan, const Made& made, const Job& job) {
  bool steady = false;
  for (int64_t i = job.tile_begin; i < job.tile_begin + job.num_tiles; ++i) {
    const KeyTile& t = made.tiles.at(static_cast<size_t>(i));
    int longest[2];
    for (int slot = 0; slot < 2; ++slot)
      longest[slot] = std::max(t.valid[0][slot], t.valid[1][slot]);
    EXPECT_GT(longest[0], 0);
    if (longest[1] == 0) {
      EXPECT_EQ(t.key[1], t.key[0]);
    }
    if (plan.votes != Votes::none) continue;
    const bool whole = longest[0] == kSlotKeys && longest[1] == kSlotKeys;
    EXPECT_TRUE(whole || !steady) << "tile " << i - job.tile_begin;
    steady = whole;
  }
}

void check_call(const AttendCase& c, bool mass, size_t scratch) {
  AttendParams p = c.params();
  float room;
  if (mass) p.block_mass = &room;
  const Plan plan = make_plan(p, scratch);
  const BlockIndex listed =
      compact_blocks(p.mask, p.num_heads, p.num_q_blocks, p.num_k_blocks, p.order);
  std::vector<std::vector<int>> rows(static_cast<size_t>(p.num_heads),
                                     std::vector<int>(static_cast<size_t>(p.q_len)));
  size_t chunk = 0;
  for (const Made& made : make(p, plan)) {
    const Plan::Chunk& of = plan.chunks[chunk++];
    for (size_t j = 0; j < made.jobs.size(); ++j) {
      const Job& job = made.jobs[j];
      const Job& planned = plan.jobs[static_cast<size_t>(of.first_job) + j];
      EXPECT_EQ(job.head, c.head(job.call));
      EXPECT_GE(job.call, of.first_call);
      EXPECT_LT(job.call, of.first_call + of.calls);
      EXPECT_LE(job.num_tiles, planned.num_tiles);
      if (!plan.join) {
        EXPECT_EQ(job.num_tiles, planned.num_tiles);
      }
      check_tiles(plan, made, job);
      for (int half = 0; half < 2; ++half) {
        if (job.rows[half] == 0) continue;
        for (int r = 0; r < job.rows[half]; ++r)
          ++rows[static_cast<size_t>(job.call)][static_cast<size_t>(job.row[half] + r)];
        check_half(c, listed, plan, made, job, half, mass);
      }
    }
  }
  for (const std::vector<int>& of_head : rows)
    EXPECT_EQ(of_head, std::vector<int>(static_cast<size_t>(p.q_len), 1)) << "each row once";
}

TEST(CudaPlan, EveryKeptPairOnceAndNoOther) {
  struct {
    int32_t block_q, block_k;
    bool explicit_blocks;
  } const layouts[] = {{64, 64, false},   {128, 128, false}, {100, 32, false},
                       {256, 100, false}, {192, 300, false}, {48, 1, false},
                       {64, 48, true},    {90, 150, true},   {500, 1000, false}};
  struct {
    VisitOrder order;
    bool rule, mass;
  } const calls[] = {{VisitOrder::ascending, false, false},
                     {VisitOrder::ascending, false, true},
                     {VisitOrder::ascending, true, false},
                     {VisitOrder::coarse_to_fine, true, false},
                     {VisitOrder::coarse_to_fine, true, true}};
  uint64_t seed = 0;
  for (const auto& layout : layouts)
    for (const double density : {1.0, 0.4})
      for (const auto& call : calls) {
        AttendSpec spec{.heads = 3,
                        .head_ids = {2, 0},
                        .q_len = 205,
                        .k_len = 311,
                        .block_q = layout.block_q,
                        .block_k = layout.block_k,
                        .explicit_blocks = layout.explicit_blocks,
                        .density = density,
                        .empty_rows = true,
                        .visit = call.order,
                        .seed = ++seed};
        if (call.rule) spec.skip = SkipKind::running_max, spec.skip_param = 0.5f;
        SCOPED_TRACE(spec.describe() + (call.mass ? " mass" : ""));
        check_call(AttendCase(spec), call.mass, kNoLimit);
        if (testing::Test::HasFailure()) return;
      }
}

TEST(CudaPlan, ManyWordsOfAMask) {
  for (const bool rule : {false, true})
    for (const int32_t block_k : {1, 20}) {
      AttendSpec spec{.heads = 1,
                      .q_len = 130,
                      .k_len = 2500,
                      .block_q = 64,
                      .block_k = block_k,
                      .density = block_k == 1 ? 0.9 : 0.6,
                      .visit = VisitOrder::coarse_to_fine};
      if (rule) spec.skip = SkipKind::running_max, spec.skip_param = 0.5f;
      check_call(AttendCase(spec), false, kNoLimit);
    }
}

TEST(CudaPlan, OneKeyNoKeysAndOneRow) {
  for (const int64_t k_len : {0, 1, 64, 129})
    for (const bool rule : {false, true}) {
      AttendSpec spec{.heads = 1, .q_len = 1, .k_len = k_len, .visit = VisitOrder::coarse_to_fine};
      if (rule) spec.skip = SkipKind::running_max, spec.skip_param = 0.5f;
      check_call(AttendCase(spec), rule, kNoLimit);
    }
}

// Little room: head by head, with the same tiles in the same memory.
TEST(CudaPlan, ChunksOfHeads) {
  for (const double density : {1.0, 0.5}) {
    const AttendCase c({.heads = 4, .q_len = 200, .k_len = 300, .block_k = 64, .density = density});
    AttendParams p = c.params();
    float mass;
    p.block_mass = &mass;
    const Plan all = make_plan(p, kNoLimit), each = make_plan(p, 1);
    EXPECT_EQ(all.chunks.size(), 1u);
    ASSERT_EQ(each.chunks.size(), 4u);
    const int64_t of_a_head = each.chunks[0].out_tiles;
    if (density == 1.0) {
      EXPECT_EQ(all.chunks[0].out_tiles, 4 * of_a_head);
      EXPECT_EQ(each.chunks[1].lists, 0) << "all heads walk the lists of the first";
      const auto two_heads = static_cast<size_t>(2 * of_a_head) * 1024 + 1000;
      EXPECT_EQ(make_plan(p, two_heads).chunks.size(), 2u);
    }
    check_call(c, true, 1);
  }
}

// --- folding -----------------------------------------------------------------------------------

// What the kernels leave behind made up, and folded by hand.
struct Left {
  std::vector<uint8_t> kept;
  std::vector<float> slot_lse, lse;
  std::vector<uint64_t> bits;
  std::vector<int64_t> pairs;
  std::vector<double> mass;
};

Left made_up(const AttendCase& c, const AttendParams& p, const Plan& plan, const Made& made) {
  Left left;
  test::Rng rng(3);
  const int64_t words = mask_words(p.num_k_blocks);
  const auto rows = static_cast<size_t>(c.spec().heads * p.num_q_blocks);
  left.kept.resize(static_cast<size_t>(plan.chunks[0].out_tiles) * 2);
  left.slot_lse.assign(static_cast<size_t>(plan.chunks[0].out_tiles) * 4 * kHalfRows, NAN);
  left.lse.assign(static_cast<size_t>(c.spec().heads * p.q_len), 1.5f);
  left.bits.assign(rows * static_cast<size_t>(words), AttendCase::kUntouchedBits);
  left.pairs.resize(static_cast<size_t>(p.num_heads));
  left.mass.assign(rows * static_cast<size_t>(p.num_k_blocks), NAN);
  for (int32_t call = 0; call < p.num_heads; ++call)
    for (int64_t row = c.head(call) * int64_t{p.num_q_blocks};
         row < (c.head(call) + 1) * int64_t{p.num_q_blocks}; ++row) {
      std::fill_n(left.bits.begin() + row * words, words, 0);
      std::fill_n(left.mass.begin() + row * p.num_k_blocks, p.num_k_blocks, 0.0);
    }
  std::vector<uint64_t> kept_bits(left.bits.size());
  for (const Job& job : made.jobs)
    for (int half = 0; half < 2; ++half)
      for (int t = 0; t < job.num_tiles; ++t) {
        const KeyTile& tile = made.tiles[static_cast<size_t>(job.tile_begin + t)];
        const auto out = static_cast<size_t>(job.out_begin + t);
        const auto kept = static_cast<uint8_t>(rng.integer(0, 3));
        left.kept[out * 2 + static_cast<size_t>(half)] = kept;
        for (size_t slot = 0; slot < 2; ++slot) {
          const int keys = tile.valid[half][slot];
          if (keys == 0 || job.rows[half] == 0) continue;
          int32_t qb = 0, kb = 0;
          while (c.q_layout().end(job.call, qb) <= job.row[half]) ++qb;
          while (c.k_layout().end(job.call, kb) <= tile.key[slot]) ++kb;
          const int64_t row = job.head * int64_t{p.num_q_blocks} + qb;
          const bool is_kept = kept >> slot & 1;
          auto& bits = is_kept ? kept_bits : left.bits;
          bits[static_cast<size_t>(row * words + kb / 64)] |= uint64_t{1} << (kb % 64);
          if (!is_kept) continue;
          left.pairs[static_cast<size_t>(job.call)] += int64_t{keys} * job.rows[half];
          for (int r = 0; r < job.rows[half]; ++r) {
            const auto log2 = static_cast<float>(rng.uniform()) - 3.0f;
            left.slot_lse[(out * 2 + slot) * 128 + static_cast<size_t>(half * 64 + r)] = log2;
            left.mass[static_cast<size_t>(row * p.num_k_blocks + kb)] +=
                std::exp(double{log2} * std::log(2.0) - 1.5) /
                static_cast<double>(c.q_layout().size(job.call, qb));
          }
        }
      }
  for (size_t i = 0; i < left.bits.size(); ++i)
    if (left.bits[i] != AttendCase::kUntouchedBits) left.bits[i] &= ~kept_bits[i];
  return left;
}

template <typename T>
std::vector<T> brought_back(Device& device, const DeviceMemory& from, size_t count) {
  std::vector<T> values(count);
  device.download(values.data(), from.as<void>(), count * sizeof(T));
  return values;
}

void check_fold(const AttendSpec& spec) {
  SCOPED_TRACE(spec.describe());
  const AttendCase c(spec);
  AttendParams p = c.params();
  float room;
  p.block_mass = &room;
  const Plan plan = make_plan(p, kNoLimit);
  const Left left = made_up(c, p, plan, make(p, plan).at(0));
  const auto device = emulated();
  const DevicePlan on_device(*device, p, plan);
  on_device.make_tiles(0);
  AttendArgs args{};
  on_device.fill(args, 0);
  device->upload(args.kept, left.kept.data(), left.kept.size());
  device->upload(args.slot_lse, left.slot_lse.data(), left.slot_lse.size() * sizeof(float));
  const DeviceMemory lse(*device, left.lse), pairs(*device, left.pairs.size() * sizeof(int64_t));
  const std::vector<uint64_t> untouched(left.bits.size(), AttendCase::kUntouchedBits);
  const DeviceMemory bits(*device, untouched), mass(*device, left.mass.size() * sizeof(float));
  on_device.fold(0, {bits.as<uint64_t>(), mass.as<float>(), lse.as<float>()});
  on_device.sum_pairs(pairs.as<int64_t>());
  EXPECT_EQ(brought_back<uint64_t>(*device, bits, left.bits.size()), left.bits);
  EXPECT_EQ(brought_back<int64_t>(*device, pairs, left.pairs.size()), left.pairs);
  const std::vector<float> got = brought_back<float>(*device, mass, left.mass.size());
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(left.mass[i])) continue;  // heads that were not asked for
    ASSERT_NEAR(got[i], left.mass[i], 1e-4 * std::max(1.0, left.mass[i])) << i;
  }
}

TEST(CudaFold, BitsPairsAndMass) {
  AttendSpec spec{.heads = 3,
                  .head_ids = {2, 0},
                  .q_len = 333,
                  .k_len = 411,
                  .density = 0.6,
                  .empty_rows = true,
                  .visit = VisitOrder::coarse_to_fine,
                  .skip = SkipKind::running_max,
                  .skip_param = 0.5f};
  for (const int32_t block_q : {64, 100, 256})
    for (const int32_t block_k : {32, 300})
      for (const bool explicit_blocks : {false, true}) {
        spec.block_q = block_q, spec.block_k = block_k, spec.explicit_blocks = explicit_blocks;
        check_fold(spec);
        if (testing::Test::HasFailure()) return;
      }
}

// More key blocks than the kernels take at a time.
TEST(CudaFold, ManyKeyBlocks) {
  check_fold({.heads = 1,
              .q_len = 3,
              .k_len = 8300,
              .block_k = 1,
              .density = 0.2,
              .visit = VisitOrder::coarse_to_fine,
              .skip = SkipKind::running_max,
              .skip_param = 0.5f});
}

}  // namespace
}  // namespace lacuna::cuda
