// SPDX-License-Identifier: Apache-2.0
// A few query tiles of one head walking through their key pieces together, so that a piece of K
// and V is brought into the core's cache once for all of them.
#pragma once

#include <cstdint>
#include <vector>

#include "lacuna/backend/cpu/attend_plan.h"
#include "lacuna/backend/cpu/attend_scratch.h"
#include "lacuna/backend/cpu/attend_skip.h"
#include "lacuna/backend/cpu/kernel_ops.h"

namespace lacuna::cpu {

// A finite bias stays finite in log2 units: rows where every key carries the lowest float are a
// plain mean, not empty.
void log2_bias(const float* bias, int64_t count, float* out);

struct HeadData {
  int32_t call = 0;  // call index
  int64_t head = 0;  // tensor head
  const HeadPlan* plan = nullptr;
  const char* packed_k = nullptr;
  const char* packed_v = nullptr;
  const float* key_bias = nullptr;  // [k_len] log2 units, or null
};

// Scratch of one worker thread.
class TileBatch {
 public:
  void begin(const AttendParams& params, const KernelOps& ops, const HeadData& head);
  // Runs tiles [first, first + count) of the head's plan and writes all their outputs. Batches of
  // one query block must come in order. Returns the (query, key) pairs whose P V was computed.
  int64_t run(int32_t first, int32_t count);

 private:
  struct State {
    TileRows rows;
    const Tile* tile = nullptr;
    PieceCursor cursor;
    float* q = nullptr;
    float* o = nullptr;
    uint64_t* kept = nullptr;     // [words] blocks with a kept piece
    uint64_t* skipped = nullptr;  // [words] blocks with a skipped piece
    int64_t visited = 0, kept_pieces = 0;
  };
  // A kept piece's row sums, for the block mass.
  struct MassRecord {
    float sum[kVoteRows], m[kVoteRows];
    int32_t block;
  };

  void start(State& state, const Tile& tile);
  void step(State& state, int32_t piece, int32_t next);
  void add_pair_bias(State& state, const Piece& piece);
  void finish(State& state);
  void write_lse(const State& state);
  void add_mass(const State& state, const MassRecord* records);
  void add_skip_bits(const State& state);

  const AttendParams* p_ = nullptr;
  const KernelOps* ops_ = nullptr;
  HeadData head_;
  SkipVote vote_;
  float scale_ = 0.0f;  // sm_scale in log2 units
  int64_t words_ = 0;   // of a row of skip bits
  int64_t pairs_ = 0;
  std::vector<State> states_;
  std::vector<std::vector<MassRecord>> mass_;  // of each tile of the batch
  std::vector<uint64_t> block_kept_;           // [words] of the current query block
  ScratchBuffer tiles_, scores_, bits_;
};

}  // namespace lacuna::cpu
