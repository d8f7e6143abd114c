// SPDX-License-Identifier: Apache-2.0
// Attention for Hopper (sm_90a): TMA, wgmma, warp specialised, persistent.
//
// 384 threads: warpgroup 0 produces (warp 0 hands out jobs and loads Q and K, warp 1 loads V, one
// elected lane each), warpgroups 1 and 2 compute, one half of the job each (launch.h).
//
// Who may touch what, and what makes it safe:
//  * K and V stages, Q: written by TMA only. `full` barriers have one arrival, the producer's
//    arrive.expect_tx; the phase completes when the bytes have landed, and the consumers' wait
//    acquires them. `empty` barriers have one arrival per consumer warp, made after
//    wgmma.wait_group of the products that read the stage, so TMA never overwrites an operand in
//    use. Consumer use n of a stage waits for parity n & 1; the producer waits for parity
//    (n & 1) ^ 1, which a fresh barrier passes at once.
//  * A half that owns nothing in a tile still waits for `full` before it arrives on `empty`:
//    arriving earlier could be counted into the previous phase.
//  * stage info: written by the K producer before its arrive.expect_tx (release) and read by all
//    consumers after their wait (acquire); each warp's lanes meet before lane 0 arrives on `empty`.
//  * Output staging reuses the half's part of Q: all its wgmma are done (wait_group 0, then the
//    half's named barrier), plain stores, fence.proxy.async by every writer, the named barrier
//    again, then one thread issues the TMA store and arrives on q_empty after wait_group.read.
//  * wgmma: wgmma.fence before the first product that touches registers written since the last
//    wait; accumulators and P are not touched between issue and the matching wait.
//
// Math warpgroups take turns on named barriers (ping-pong): while one issues its products, the
// other computes exponentials. Both pass the turn exactly once per key tile of the job.
#pragma once

#include "lacuna/backend/cuda/softmax.cuh"

namespace lacuna::cuda {

inline constexpr int kStages = kSm90Stages;
inline constexpr int kConsumerWarps = 8;
// Together no more than at launch: setmaxnreg.inc waits for what is not there for ever.
inline constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;
static_assert(kProducerRegisters + 2 * kConsumerRegisters <= 3 * kSm90LaunchRegisters);

// Tiles lie as columns of 64 elements (128 bytes) so that each is one swizzle atom wide:
// [head_dim / 64][rows][64], 16-byte chunk c of row r at chunk c ^ (r & 7).
template <int kDim>
struct alignas(1024) Sm90Shared {
  uint16_t q[kDim / 64][2 * kHalfRows][64];
  uint16_t k[kStages][kDim / 64][kTileKeys][64];
  uint16_t v[kStages][kDim / 64][kTileKeys][64];
  KeyTile info[kStages];
  uint64_t q_full, q_empty;
  uint64_t k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];
  uint64_t work_full[2], work_empty[2];
  int32_t work[2];  // job index, -1 = no more
};

enum Sm90Barrier : int { kTurn = 1, kHalf = 3, kVote = 5 };  // + half; 0 is sync_block's

// The use-th time a ring of two is used: which element, and the parity of that element's phase.
struct RingUse {
  int index;
  uint32_t parity;
};
LACUNA_DEVICE RingUse ring_use(uint32_t use) {
  static_assert(kStages == 2);
  return {static_cast<int>(use & 1), (use >> 1) & 1};
}

template <int kDim>
LACUNA_DEVICE void sm90_init(Sm90Shared<kDim>& s) {
  if (thread_id() == 0) {
    mbarrier_init(&s.q_full, 1);
    mbarrier_init(&s.q_empty, 2);
    for (int i = 0; i < 2; ++i) {
      mbarrier_init(&s.k_full[i], 1);
      mbarrier_init(&s.k_empty[i], kConsumerWarps);
      mbarrier_init(&s.v_full[i], 1);
      mbarrier_init(&s.v_empty[i], kConsumerWarps);
      mbarrier_init(&s.work_full[i], 1);
      mbarrier_init(&s.work_empty[i], kConsumerWarps + 1);
    }
    mbarrier_init_fence();
  }
  sync_block();
}

template <int kDim>
LACUNA_DEVICE void load_rows(uint16_t (&to)[kDim / 64][2 * kHalfRows][64], int first,
                             const TensorMap& map, uint64_t* full, int token, int head) {
  LACUNA_UNROLL
  for (int c = 0; c < kDim / 64; ++c) tma_load(&to[c][first][0], &map, full, c * 64, token, head);
}

LACUNA_DEVICE constexpr uint32_t box_bytes(int dim) {
  return static_cast<uint32_t>(kSlotKeys * dim * 2);
}

// Warp 0: jobs, Q and K.
template <int kDim>
LACUNA_DEVICE void produce_keys(Sm90Shared<kDim>& s, const TensorMap& map_q, const TensorMap& map_k,
                                const AttendArgs& p) {
  uint32_t tile = 0;
  LACUNA_NO_UNROLL
  for (uint32_t n = 0;; ++n) {
    const RingUse w = ring_use(n);
    mbarrier_wait(&s.work_empty[w.index], w.parity ^ 1);
    const int32_t next = atomic_add(p.counter, 1);
    const int32_t index = next < p.num_jobs ? next : -1;
    s.work[w.index] = index;
    mbarrier_arrive(&s.work_full[w.index]);
    if (index < 0) return;
    const Job job = p.jobs[index];
    mbarrier_wait(&s.q_empty, (n & 1) ^ 1);
    mbarrier_arrive_expect(&s.q_full, box_bytes(kDim) * (job.rows[1] > 0 ? 2 : 1));
    load_rows<kDim>(s.q, 0, map_q, &s.q_full, job.row[0], job.head);
    if (job.rows[1] > 0) load_rows<kDim>(s.q, kHalfRows, map_q, &s.q_full, job.row[1], job.head);
    LACUNA_NO_UNROLL
    for (int j = 0; j < job.num_tiles; ++j, ++tile) {
      const KeyTile t = p.tiles[job.tile_begin + j];
      const RingUse use = ring_use(tile);
      mbarrier_wait(&s.k_empty[use.index], use.parity ^ 1);
      s.info[use.index] = t;
      mbarrier_arrive_expect(&s.k_full[use.index], 2 * box_bytes(kDim));
      load_rows<kDim>(s.k[use.index], 0, map_k, &s.k_full[use.index], t.key[0], job.head);
      load_rows<kDim>(s.k[use.index], kSlotKeys, map_k, &s.k_full[use.index], t.key[1], job.head);
    }
  }
}

// Warp 1: V.
template <int kDim>
LACUNA_DEVICE void produce_values(Sm90Shared<kDim>& s, const TensorMap& map_v,
                                  const AttendArgs& p) {
  uint32_t tile = 0;
  LACUNA_NO_UNROLL
  for (uint32_t n = 0;; ++n) {
    const RingUse w = ring_use(n);
    mbarrier_wait(&s.work_full[w.index], w.parity);
    const int32_t index = s.work[w.index];
    mbarrier_arrive(&s.work_empty[w.index]);
    if (index < 0) return;
    const Job job = p.jobs[index];
    LACUNA_NO_UNROLL
    for (int j = 0; j < job.num_tiles; ++j, ++tile) {
      const KeyTile t = p.tiles[job.tile_begin + j];
      const RingUse use = ring_use(tile);
      mbarrier_wait(&s.v_empty[use.index], use.parity ^ 1);
      mbarrier_arrive_expect(&s.v_full[use.index], 2 * box_bytes(kDim));
      load_rows<kDim>(s.v[use.index], 0, map_v, &s.v_full[use.index], t.key[0], job.head);
      load_rows<kDim>(s.v[use.index], kSlotKeys, map_v, &s.v_full[use.index], t.key[1], job.head);
    }
  }
}

// One math warpgroup.
template <class T, int kDim, Votes kVotes>
class Sm90Consumer {
 public:
  LACUNA_DEVICE Sm90Consumer(Sm90Shared<kDim>& s, const TensorMap& map_out, const AttendArgs& p,
                             int half)
      : s_(s),
        map_out_(map_out),
        p_(p),
        half_(half),
        thread_(thread_id() & 127),
        warp_((thread_id() & 127) >> 5),
        lane_(thread_id() & 31) {}

  LACUNA_DEVICE void run() {
    if (half_ == 0) barrier_arrive(kTurn, 256);  // half 0 goes first
    LACUNA_NO_UNROLL
    for (uint32_t n = 0;; ++n) {
      const RingUse w = ring_use(n);
      mbarrier_wait(&s_.work_full[w.index], w.parity);
      const int32_t index = s_.work[w.index];
      release(&s_.work_empty[w.index]);
      if (index < 0) break;
      run_job(half_job(p_.jobs[index], half_), n);
    }
    if (half_ == 0) barrier_sync(kTurn, 256);  // takes the turn that half 1 gave last
  }

 private:
  LACUNA_DEVICE void run_job(const HalfJob job, uint32_t n) {
    Softmax<kVotes> softmax(p_, job, half_, warp_, lane_, kVote + half_);
    LACUNA_UNROLL
    for (int i = 0; i < kDim / 2; ++i) o_[i] = 0.0f;
    bias_rows(p_, job, warp_, lane_, bias_);
    mbarrier_wait(&s_.q_full, n & 1);
    bool pending = false;  // P of the last tile waits for its product with V
    LACUNA_NO_UNROLL
    for (int j = 0; j < job.num_tiles; ++j, ++tile_)
      pending = run_tile(softmax, job.out_begin + j, pending);
    if (pending) {
      wait_values(tile_ - 1);
      issue_values(tile_ - 1);
      finish_values(tile_ - 1);
    }
    write_output(softmax, job);
  }

  LACUNA_DEVICE bool run_tile(Softmax<kVotes>& softmax, int64_t out_tile, bool pending) {
    const RingUse use = ring_use(tile_);
    mbarrier_wait(&s_.k_full[use.index], use.parity);
    const HalfTile tile = half_tile(s_.info[use.index], half_);
    if (tile.valid[0] + tile.valid[1] == 0) {
      pass_tile(pending);
      return false;
    }
    bool kept;
    take_turn();
    issue_scores(use.index);
    // Two written-out paths: a branch between the issue and the wait of one path would make ptxas
    // serialise wgmma (C7514).
    if (pending) {
      wait_values(tile_ - 1);
      issue_values(tile_ - 1);
      give_turn();
      wgmma_wait<1>();
      wgmma_landed(s_acc_);
      release(&s_.k_empty[use.index]);
      adjust_logits(tile);
      kept = softmax.step(s_acc_, tile, out_tile) != 0;
      finish_values(tile_ - 1);
      if (kept) {
        rescale_output(softmax.rescale);
        pack_probabilities<T>(s_acc_, packed_);
      }
    } else {
      give_turn();
      wgmma_wait<0>();
      wgmma_landed(s_acc_);
      release(&s_.k_empty[use.index]);
      adjust_logits(tile);
      kept = softmax.step(s_acc_, tile, out_tile) != 0;
      if (kept) {
        rescale_output(softmax.rescale);
        pack_probabilities<T>(s_acc_, packed_);
      }
    }
    if (!kept) release_unread_values();
    return kept;
  }

  // Both rare: short slots come first in a list where no rule asks for another order.
  LACUNA_DEVICE void adjust_logits(const HalfTile& tile) {
    if (p_.bias != nullptr) add_bias(s_acc_, tile, p_.inv_scale, bias_, lane_);
    if (tile.valid[0] < kSlotKeys || tile.valid[1] < kSlotKeys) mask_logits(s_acc_, tile, lane_);
  }

  // A tile of which this half owns nothing.
  LACUNA_DEVICE void pass_tile(bool pending) {
    take_turn();
    if (pending) {
      wait_values(tile_ - 1);
      issue_values(tile_ - 1);
      give_turn();
      finish_values(tile_ - 1);
    } else {
      give_turn();
    }
    release(&s_.k_empty[ring_use(tile_).index]);
    release_unread_values();
  }

  LACUNA_DEVICE void release_unread_values() {
    wait_values(tile_);
    release(&s_.v_empty[ring_use(tile_).index]);
  }

  // S = Q K^T. K-major operands: 8-row groups are 1,024 bytes apart, 16 channels are 32 bytes
  // inside the swizzle atom; the leading distance is not used by this layout.
  LACUNA_DEVICE void issue_scores(int stage) {
    constexpr uint32_t kColumn = kTileKeys * 128;
    static_assert(sizeof(s_.q[0]) == kColumn && sizeof(s_.k[0][0]) == kColumn);
    const uint64_t q = wgmma_descriptor(&s_.q[0][half_ * kHalfRows][0], 16, 1024);
    const uint64_t k = wgmma_descriptor(&s_.k[stage][0][0][0], 16, 1024);
    wgmma_fence();
    LACUNA_UNROLL
    for (uint32_t c = 0; c < kDim / 64; ++c) LACUNA_UNROLL
    for (uint32_t x = 0; x < 4; ++x)
      wgmma_shared(s_acc_, wgmma_behind(q, c * kColumn + x * 32),
                   wgmma_behind(k, c * kColumn + x * 32), (c | x) != 0, T());
    wgmma_commit();
  }

  // O += P V. V is N-major: the next 64 channels are one column of tiles away (leading), the next
  // 8 keys 1,024 bytes (stride).
  LACUNA_DEVICE void issue_values(uint32_t tile) {
    const int stage = ring_use(tile).index;
    const uint64_t v = wgmma_descriptor(&s_.v[stage][0][0][0], kTileKeys * 128, 1024);
    wgmma_fence();
    LACUNA_UNROLL
    for (uint32_t x = 0; x < kTileKeys / 16; ++x)
      wgmma_registers(o_, packed_ + 4 * x, wgmma_behind(v, x * 16 * 128), T());
    wgmma_commit();
  }

  LACUNA_DEVICE void wait_values(uint32_t tile) {
    const RingUse use = ring_use(tile);
    mbarrier_wait(&s_.v_full[use.index], use.parity);
  }
  LACUNA_DEVICE void finish_values(uint32_t tile) {
    wgmma_wait<0>();
    wgmma_landed(o_);
    release(&s_.v_empty[ring_use(tile).index]);
  }

  LACUNA_DEVICE void rescale_output(const float (&factor)[2]) {
    LACUNA_UNROLL
    for (int i = 0; i < kDim / 2; ++i) o_[i] *= factor[(i >> 1) & 1];
  }

  LACUNA_DEVICE void write_output(Softmax<kVotes>& softmax, const HalfJob& job) {
    float factor[2];
    softmax.finish(job, factor);
    const int rows = job.rows;
    // TMA clips at the end of the tensor only.
    const bool whole = rows == kHalfRows || (rows > 0 && job.row + rows == p_.q_len);
    barrier_sync(kHalf + half_, 128);
    if (whole) {
      stage_output(factor);
      fence_proxy_async();
      barrier_sync(kHalf + half_, 128);
      if (thread_ == 0) {
        LACUNA_UNROLL
        for (int c = 0; c < kDim / 64; ++c)
          tma_store(&map_out_, &s_.q[c][half_ * kHalfRows][0], c * 64, job.row, job.head);
        tma_store_commit();
        tma_store_wait_read();
      }
    } else {
      store_rows<T, kDim>(o_, factor, job, p_, warp_, lane_);
    }
    if (thread_ == 0) mbarrier_arrive(&s_.q_empty);
  }

  // Rows of this warp into the half's part of Q, swizzled as the TMA store reads them.
  LACUNA_DEVICE void stage_output(const float (&factor)[2]) {
    LACUNA_UNROLL
    for (int g = 0; g < kDim / 8; ++g) LACUNA_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int row = warp_ * 16 + (lane_ >> 2) + 8 * i;
      const uint32_t at = shared_address(&s_.q[g >> 3][half_ * kHalfRows + row][0]);
      store_shared(
          at + static_cast<uint32_t>((((g & 7) ^ (row & 7)) * 16) + (lane_ & 3) * 4),
          pack_pair(o_[4 * g + 2 * i] * factor[i], o_[4 * g + 2 * i + 1] * factor[i], T()));
    }
  }

  LACUNA_DEVICE void take_turn() { barrier_sync(kTurn + half_, 256); }
  LACUNA_DEVICE void give_turn() { barrier_arrive(kTurn + (half_ ^ 1), 256); }
  LACUNA_DEVICE void release(uint64_t* empty) {
    sync_warp();
    if (lane_ == 0) mbarrier_arrive(empty);
  }

  Sm90Shared<kDim>& s_;
  const TensorMap& map_out_;
  const AttendArgs& p_;
  const int half_, thread_, warp_, lane_;
  uint32_t tile_ = 0;  // key tiles so far, over all jobs
  float s_acc_[64];    // S, then P
  float o_[kDim / 2];
  uint32_t packed_[32];  // P, rounded
  const float* bias_[2];
};

static_assert(sizeof(Sm90Shared<64>) == kernel_shared_bytes(Family::sm90, 64) &&
              sizeof(Sm90Shared<128>) == kernel_shared_bytes(Family::sm90, 128));

template <class T, int kDim, Votes kVotes>
LACUNA_DEVICE void attend_sm90(const TensorMap& map_q, const TensorMap& map_k,
                               const TensorMap& map_v, const TensorMap& map_out,
                               const AttendArgs& p) {
  auto& s = *reinterpret_cast<Sm90Shared<kDim>*>(shared_memory());
  sm90_init(s);
  // Uniform over the warp for the compiler too: setmaxnreg and wgmma need it.
  const int warp = broadcast_lane0(thread_id() >> 5);
  if (warp < 4) {
    registers_lower<kProducerRegisters>();
    if (warp == 0 && (thread_id() & 31) == 0) {
      tma_prefetch(&map_q);
      tma_prefetch(&map_k);
      produce_keys(s, map_q, map_k, p);
    } else if (warp == 1 && (thread_id() & 31) == 0) {
      tma_prefetch(&map_v);
      tma_prefetch(&map_out);
      produce_values(s, map_v, p);
    }
    return;
  }
  registers_raise<kConsumerRegisters>();
  Sm90Consumer<T, kDim, kVotes> consumer(s, map_out, p, (warp >> 2) - 1);
  consumer.run();
}

}  // namespace lacuna::cuda
