// SPDX-License-Identifier: Apache-2.0
// From an attention call to jobs (launch.h) and the lists of key tiles that they walk: what the
// host decides, by operations on words of the mask. The tiles themselves are made on the device
// (plan.cuh, device_plan.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "lacuna/backend/cuda/plan_args.h"

namespace lacuna::cuda {

// Tensor heads by call index.
std::vector<int32_t> head_ids(const AttendParams& params);
// 64-bit words of a row of a mask.
inline int64_t mask_words(int32_t num_k_blocks) {
  return (int64_t{num_k_blocks} + 63) / 64;
}

struct Plan {
  // Heads that are computed at a time: they share the memory of key tiles and of what kernels leave
  // behind. Offsets in jobs count from the start of that memory.
  struct Chunk {
    int32_t first_call = 0, calls = 0;
    int64_t first_job = 0, jobs = 0;    // of Plan::jobs
    int64_t first_list = 0, lists = 0;  // of Plan::lists; none where the chunk before left them
    int64_t tiles = 0, out_tiles = 0;   // room
  };

  Votes votes = Votes::none;
  bool join = false;                  // PlanArgs::join
  int32_t block_k = 0, k_blocks = 0;  // of uniform key blocks as lists are made of them
  bool whole = false;                 // no sign of blocks: keys are one run, rows another
  std::vector<Job> jobs;              // head by head, longest first
  std::vector<TileList> lists;
  std::vector<Chunk> chunks;
  std::vector<int32_t> places, first_half;  // FoldArgs; where there is something to fold
  std::vector<int64_t> pairs;               // [num_heads] (query, key) pairs of kept blocks
};

// Query rows go in halves of at most 64 from the start of their query block; two neighbouring
// halves of a head make a job, and walk the union of their lists. Jobs of the same query blocks
// share a list; without a mask, and with uniform blocks, so do all heads.
//  * No skip rule: order is free. Blocks ascend; slots with fewer than 64 keys come first, so that
//    only the first key tiles need masking; adjacent blocks grow together unless block mass is
//    wanted.
//  * A skip rule: each half visits its own list in its own order. A piece (attend_params.h) of more
//    than 64 keys is a key tile; if none has more, each slot is a piece.
// An odd number of slots leaves the second slot of the first key tile unused.
//
// Where blocks are joined whose size is no multiple of 64, the device finds how many tiles a list
// has, and Job::num_tiles is the most that there can be until it has. Heads are put together while
// their tiles and what kernels leave behind take at most `scratch` bytes.
Plan make_plan(const AttendParams& params, size_t scratch);

}  // namespace lacuna::cuda
