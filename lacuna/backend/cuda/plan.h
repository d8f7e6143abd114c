// SPDX-License-Identifier: Apache-2.0
// From an attention call to jobs and key tiles (launch.h), and from what kernels leave behind to
// the call's optional outputs.
#pragma once

#include <cstdint>
#include <vector>

#include "lacuna/backend/cuda/launch.h"

namespace lacuna::cuda {

struct Plan {
  Votes votes = Votes::none;
  std::vector<Job> jobs;  // head by head, longest first
  std::vector<KeyTile> tiles;
  int64_t out_tiles = 0;  // key tiles over all jobs; `tiles` may be shared between jobs

  struct Blocks {
    int32_t slot[2];
  };
  std::vector<Blocks> k_blocks;  // of `tiles`: key block of each slot
  std::vector<Blocks> q_blocks;  // of `jobs`: query block of each half
};

// Query rows go in halves of at most 64 from the start of their query block; two neighbouring
// halves of a head make a job, and walk the union of their lists.
//  * No skip rule: order is free. Blocks ascend; slots with fewer than 64 keys come first, so that
//    only the first key tiles need masking; adjacent blocks grow together unless block mass is
//    wanted.
//  * A skip rule: each half visits its own list in its own order. A piece (attend_params.h) of more
//    than 64 keys is a key tile; if none has more, each slot is a piece.
// An odd number of slots leaves the second slot of the first key tile unused.
Plan make_plan(const AttendParams& params);

// Fills skip_bits, pv_pairs and block_mass where wanted, from host copies of AttendArgs::kept,
// slot_lse and lse (null where the kernel was not asked for them).
void fold_outputs(const AttendParams& params, const Plan& plan, const uint8_t* kept,
                  const float* slot_lse, const float* lse);

}  // namespace lacuna::cuda
