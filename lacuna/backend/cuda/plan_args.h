// SPDX-License-Identifier: Apache-2.0
// What the host hands to the kernels that make key tiles out of masks and fold what attention
// leaves behind: plain data, device pointers. Heads are counted by call index unless said.
#pragma once

#include "lacuna/backend/cuda/launch.h"
#include "lacuna/backend/cuda/select_args.h"

namespace lacuna::cuda {

// Key tiles of all jobs whose halves belong to these query blocks.
struct TileList {
  int64_t tile_begin;  // in PlanArgs::tiles
  int32_t call;
  int32_t q_block[2];           // by half; -1 = there is none
  int32_t first_job, num_jobs;  // in PlanArgs::jobs: to be told the number of tiles; may be none
};

// One warp per list.
struct PlanArgs {
  const uint32_t* mask;  // [calls, q_blocks, words]: key block b is bit b % 32; null = every block
  int32_t words, q_blocks;
  BlockArgs k_blocks;
  Votes votes;
  VisitOrder order;    // under a rule
  int32_t order_bits;  // key blocks are less than 2 to this power
  bool join;           // neighbours that the same halves keep are one; without a rule
  const TileList* lists;
  int32_t num_lists;
  Job* jobs;
  KeyTile* tiles;
};
inline constexpr int kPlanThreads = 128;

// What attention left behind (AttendArgs::kept, slot_lse and lse), by query block. One thread block
// per (query block, head).
struct FoldArgs {
  const Job* jobs;
  const KeyTile* tiles;
  const int32_t* places;      // by pair of halves, heads one after the other: its job
  const int32_t* first_half;  // [calls, q_blocks]: half h is number h % 2 of job places[h / 2]
  const int32_t* head_ids;    // [calls]
  BlockArgs q_blocks, k_blocks;
  int32_t first_call;     // of this launch
  const uint8_t* kept;    // null = all of them
  const float* slot_lse;  // fold_mass
  const float* lse;
  uint32_t* skip_bits;  // [heads, q_blocks, words], by tensor head; or null
  int32_t words;
  int64_t* pairs;  // [calls, q_blocks]
  float* mass;     // [heads, q_blocks, k_blocks], by tensor head
};
inline constexpr int kFoldThreads = 128, kFoldMassThreads = 256;
inline constexpr int kFoldBlocks = 8192;  // key blocks at a time, with two flags each
// The flags, and a count for each warp.
inline constexpr int kFoldSharedBytes = 2 * kFoldBlocks + kFoldThreads / 32 * 8;
inline constexpr int kFoldMassBlocks = 4096;  // the same with a sum each

// Sums of [calls, q_blocks]. One warp per head.
struct FoldPairsArgs {
  const int64_t* pairs;
  int32_t q_blocks;
  int64_t* sums;  // [calls]
};

}  // namespace lacuna::cuda
