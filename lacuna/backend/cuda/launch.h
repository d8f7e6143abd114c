// SPDX-License-Identifier: Apache-2.0
// What the host hands to an attention kernel: plain data, shared by host code, device code and the
// emulator. Device pointers throughout.
//
// A *job* is what one thread block computes at a time: two tiles of at most 64 query rows
// ("halves") of one head. It walks one list of *key tiles*; a key tile is two *slots* of at most 64
// consecutive keys. A half owns a slot when its count of valid keys is not 0: that is how two
// halves with different block lists share one walk (union list).
#pragma once

#include <stdint.h>

#include "lacuna/backend/attend_params.h"

namespace lacuna::cuda {

inline constexpr float kLog2E = 1.44269504088896341f, kLn2 = 0.69314718055994531f;

inline constexpr int kHalfRows = 64;   // query rows of a half
inline constexpr int kSlotKeys = 64;   // keys of a slot
inline constexpr int kTileKeys = 128;  // keys of a key tile
static_assert(kHalfRows == kVoteRows && kTileKeys == kVoteKeys,
              "skip rules vote on exactly what a half computes at a time");

struct KeyTile {
  int32_t key[2];       // first key of each slot; an unused slot repeats a used one
  uint8_t valid[2][2];  // [half][slot]: keys that count, from the first one on
};

struct Job {
  int32_t head;     // tensor head
  int32_t call;     // call index
  int32_t row[2];   // first query row of each half
  int32_t rows[2];  // 0 = this half has nothing to do
  int32_t num_tiles;
  int64_t tile_begin;  // in AttendArgs::tiles
  int64_t out_begin;   // in AttendArgs::kept and slot_lse, counted in tiles
};

// How skip votes relate to key tiles.
enum class Votes : uint8_t {
  none,      // no rule
  per_tile,  // a key tile is one piece
  per_slot,  // each slot is a piece of its own
};

struct AttendArgs {
  const Job* jobs;  // [num_jobs] in the order they are handed out
  const KeyTile* tiles;
  int32_t* counter;  // jobs handed out; 0 before the launch
  int32_t num_jobs;
  int32_t q_len, k_len;

  // Used where there is no TMA, and for query tiles that end inside the tensor. Strides in
  // elements, multiples of 8; bases 16-byte aligned.
  const void* q;
  const void* k;
  const void* v;
  void* out;
  int64_t q_head_stride, q_token_stride;
  int64_t k_head_stride, k_token_stride;
  int64_t v_head_stride, v_token_stride;
  int64_t out_head_stride, out_token_stride;

  float scale_log2;   // sm_scale * log2(e), above 0
  float inv_scale;    // 1 / sm_scale
  const float* bias;  // as in AttendParams, or null
  int64_t bias_head_stride, bias_q_stride;

  SkipKind skip;
  const float* threshold;  // [num_heads] running_max: log2(param); running_lse: param * log2(e);
                           // recall: (1 - r) / r
  const float* kappa;      // [num_heads]

  float* lse;       // [heads, q_len] natural log, or null
  uint8_t* kept;    // [out tiles, 2 halves]: bit s = slot s was kept; null without a rule
  float* slot_lse;  // [out tiles, 2 slots, 128 rows] log2-sum-exp2 of kept slots, or null
};

// Thread blocks of a general kernel: blocks x blocks_y of `threads`, with dynamic shared memory.
struct Grid {
  int32_t blocks = 1, blocks_y = 1;  // blocks_y: at most 65535
  int32_t threads = 256;             // as the kernel list says
  int32_t shared_bytes = 0;          // at most 99 KiB, what sm_86, 89 and 120 have
};
inline constexpr int32_t kMostSharedBytes = 99 << 10;

// How a kernel of each family is launched: threads of a block and bytes of dynamic shared memory.
enum class Family : uint8_t {
  sm80,  // mma.sync and cp.async: 8.x and 12.x
  sm90,  // wgmma and TMA: 9.0
};
inline constexpr int kSm80Threads = 256, kSm90Threads = 384;
inline constexpr int kSm90Stages = 2;  // of K and of V
// Of a thread at launch: 65,536 / 384 in multiples of 8. setmaxnreg moves registers within what the
// block was launched with; what the SM has beside that is out of its reach.
inline constexpr int kSm90LaunchRegisters = 65536 / kSm90Threads / 8 * 8;
inline constexpr int kernel_threads(Family family) {
  return family == Family::sm90 ? kSm90Threads : kSm80Threads;
}
// Tiles of 128 rows: Q, K and V once, or twice K and V on sm90; then barriers and the like.
inline constexpr int kernel_shared_bytes(Family family, int head_dim) {
  return (family == Family::sm90 ? 1 + 2 * kSm90Stages : 3) * kTileKeys * head_dim * 2 +
         (family == Family::sm90 ? 1024 : 128);
}

// A TMA descriptor (CUtensorMap). The emulator keeps its own encoding in the same bytes.
struct alignas(64) TensorMap {
  uint64_t opaque[16];
};

}  // namespace lacuna::cuda
