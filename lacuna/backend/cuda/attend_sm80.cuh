// SPDX-License-Identifier: Apache-2.0
// Attention for GPUs without wgmma (sm_80, 86, 89, 120): cp.async and mma.sync, persistent.
//
// 256 threads: warps 0 to 3 compute half 0 of the job, warps 4 to 7 half 1, 16 rows each; all of
// them load. One buffer each for Q, K and V (96 KiB at head_dim 128: it must fit the 99 KiB of
// sm_86, 89 and 120), so loads hide behind the other product:
//
//   wait for K(t); block barrier        everyone's part of K(t) has landed, V(t-1) is read
//   start V(t); S = Q K(t)
//   block barrier                       K(t) is read
//   start K(t+1); softmax and votes
//   wait for V(t); block barrier        everyone's part of V(t) has landed
//   O += P V(t)
//
// cp.async is waited for by the thread that issued it, then made known to the others by the
// barrier; groups complete in order, so "all but the newest" is V(t) once K(t+1) was committed,
// which is why an empty group is committed after the last tile.
#pragma once

#include "lacuna/backend/cuda/softmax.cuh"

namespace lacuna::cuda {

// Columns of 64 elements; 16-byte chunk c of row r lies at chunk c ^ (r & 7), so that the eight
// rows of an ldmatrix fall into different banks.
template <int kDim>
struct alignas(128) Sm80Shared {
  uint16_t q[kDim / 64][2 * kHalfRows][64];
  uint16_t k[kDim / 64][kTileKeys][64];
  uint16_t v[kDim / 64][kTileKeys][64];
  int32_t job[2];
};

enum Sm80Barrier : int { kSm80Vote = 1 };  // + half

LACUNA_DEVICE uint32_t chunk_address(const uint16_t (&column)[2 * kHalfRows][64], int row,
                                     int chunk) {
  return shared_address(&column[row][0]) + static_cast<uint32_t>((chunk ^ (row & 7)) * 16);
}

template <class T, int kDim, Votes kVotes>
class Sm80Attend {
 public:
  LACUNA_DEVICE Sm80Attend(Sm80Shared<kDim>& s, const AttendArgs& p)
      : s_(s),
        p_(p),
        half_(thread_id() >> 7),
        warp_((thread_id() & 127) >> 5),
        lane_(thread_id() & 31) {}

  LACUNA_DEVICE void run() {
    LACUNA_NO_UNROLL
    for (int n = 0;; ++n) {
      // Two cells in turn: the one of the last job may still be read.
      if (thread_id() == 0) s_.job[n & 1] = atomic_add(p_.counter, 1);
      sync_block();
      const int32_t index = s_.job[n & 1];
      if (index >= p_.num_jobs) return;
      run_job(p_.jobs[index]);
    }
  }

 private:
  LACUNA_DEVICE void run_job(const Job& both) {
    const HalfJob job = half_job(both, half_);
    Softmax<kVotes> softmax(p_, job, half_, warp_, lane_, kSm80Vote + half_);
    LACUNA_UNROLL
    for (int i = 0; i < kDim / 2; ++i) o_[i] = 0.0f;
    bias_rows(p_, job, warp_, lane_, bias_);
    const KeyTile* tiles = p_.tiles + both.tile_begin;
    if (job.num_tiles > 0) {
      load_half(s_.q, 0, p_.q, both.head * p_.q_head_stride, p_.q_token_stride, both.row[0],
                p_.q_len);
      load_half(s_.q, kHalfRows, p_.q, both.head * p_.q_head_stride, p_.q_token_stride, both.row[1],
                p_.q_len);
      load_keys(tiles[0], job.head);
      copy_async_commit();
    }
    LACUNA_NO_UNROLL
    for (int t = 0; t < job.num_tiles; ++t) {
      copy_async_wait<0>();
      sync_block();
      load_values(tiles[t], job.head);
      copy_async_commit();
      const HalfTile tile = half_tile(tiles[t], half_);
      const bool mine = tile.valid[0] + tile.valid[1] > 0;
      if (mine) scores();
      sync_block();
      if (t + 1 < job.num_tiles) load_keys(tiles[t + 1], job.head);
      copy_async_commit();
      const bool kept = mine && adjust_and_step(softmax, tile, job.out_begin + t);
      copy_async_wait<1>();
      sync_block();
      if (kept) values(softmax.rescale);
    }
    copy_async_wait<0>();  // the empty group
    float factor[2];
    softmax.finish(job, factor);
    store_rows<T, kDim>(o_, factor, job, p_, warp_, lane_);
  }

  LACUNA_DEVICE bool adjust_and_step(Softmax<kVotes>& softmax, const HalfTile& tile,
                                     int64_t out_tile) {
    if (p_.bias != nullptr) add_bias(s_acc_, tile, p_.inv_scale, bias_, lane_);
    if (tile.valid[0] < kSlotKeys || tile.valid[1] < kSlotKeys) mask_logits(s_acc_, tile, lane_);
    return softmax.step(s_acc_, tile, out_tile) != 0;
  }

  // 64 rows, all threads. Rows past the tensor's end become zeros: 0 times a stray NaN of V would
  // be NaN.
  LACUNA_DEVICE void load_half(uint16_t (&to)[kDim / 64][2 * kHalfRows][64], int first,
                               const void* base, int64_t head_offset, int64_t token_stride,
                               int token, int end) {
    constexpr int kChunks = kDim / 8;  // of a row
    LACUNA_UNROLL
    for (int i = 0; i < kHalfRows * kChunks / kSm80Threads; ++i) {
      const int n = i * kSm80Threads + thread_id();
      const int row = n / kChunks, chunk = n % kChunks;
      const bool inside = token + row < end;
      const uint16_t* from = static_cast<const uint16_t*>(base) + head_offset +
                             (inside ? token + row : 0) * token_stride + chunk * 8;
      copy_async(chunk_address(to[chunk >> 3], first + row, chunk & 7), from, inside ? 16 : 0);
    }
  }
  LACUNA_DEVICE void load_keys(const KeyTile& t, int head) {
    LACUNA_UNROLL
    for (int slot = 0; slot < 2; ++slot)
      load_half(s_.k, slot * kSlotKeys, p_.k, head * p_.k_head_stride, p_.k_token_stride,
                t.key[slot], p_.k_len);
  }
  LACUNA_DEVICE void load_values(const KeyTile& t, int head) {
    LACUNA_UNROLL
    for (int slot = 0; slot < 2; ++slot)
      load_half(s_.v, slot * kSlotKeys, p_.v, head * p_.v_head_stride, p_.v_token_stride,
                t.key[slot], p_.k_len);
  }

  // S = Q K^T, 16 channels at a time. The lanes of an ldmatrix name rows in the order of the
  // fragments: A is rows 0-7, 8-15 of the first 8 channels, then of the next 8; B is, for two
  // groups of 8 keys, channels 0-7 and 8-15.
  LACUNA_DEVICE void scores() {
    LACUNA_UNROLL
    for (int i = 0; i < 64; ++i) s_acc_[i] = 0.0f;
    const int a_row = half_ * kHalfRows + warp_ * 16 + (lane_ & 15), a_chunk = lane_ >> 4;
    const int b_row = (lane_ & 7) + ((lane_ >> 4) << 3), b_chunk = (lane_ >> 3) & 1;
    // By two: unrolled in full, ptxas hoists so many loads that it spills.
    LACUNA_UNROLL_BY_2
    for (int x = 0; x < kDim / 16; ++x) {
      const int column = x >> 2, chunk = (x & 3) * 2;
      uint32_t a[4];
      load_matrices(a, chunk_address(s_.q[column], a_row, chunk + a_chunk));
      LACUNA_UNROLL
      for (int g = 0; g < kTileKeys / 8; g += 2) {
        uint32_t b[4];
        load_matrices(b, chunk_address(s_.k[column], g * 8 + b_row, chunk + b_chunk));
        mma(s_acc_ + 4 * g, a, b[0], b[1], T());
        mma(s_acc_ + 4 * g + 4, a, b[2], b[3], T());
      }
    }
  }

  // O = rescale O + P V, 16 keys at a time; V is transposed on its way into registers.
  LACUNA_DEVICE void values(const float (&rescale)[2]) {
    LACUNA_UNROLL
    for (int i = 0; i < kDim / 2; ++i) o_[i] *= rescale[(i >> 1) & 1];
    const int b_row = lane_ & 15, b_chunk = lane_ >> 4;
    LACUNA_UNROLL
    for (int x = 0; x < kTileKeys / 16; ++x) {
      uint32_t a[4];
      LACUNA_UNROLL
      for (int i = 0; i < 4; ++i)
        a[i] = pack_pair(s_acc_[8 * x + 2 * i], s_acc_[8 * x + 2 * i + 1], T());
      LACUNA_UNROLL
      for (int g = 0; g < kDim / 8; g += 2) {
        uint32_t b[4];
        load_matrices_transposed(b, chunk_address(s_.v[g >> 3], x * 16 + b_row, (g & 7) + b_chunk));
        mma(o_ + 4 * g, a, b[0], b[1], T());
        mma(o_ + 4 * g + 4, a, b[2], b[3], T());
      }
    }
  }

  Sm80Shared<kDim>& s_;
  const AttendArgs& p_;
  const int half_, warp_, lane_;
  float s_acc_[64];  // S, then P
  float o_[kDim / 2];
  const float* bias_[2];
};

static_assert(sizeof(Sm80Shared<64>) == kernel_shared_bytes(Family::sm80, 64) &&
              sizeof(Sm80Shared<128>) == kernel_shared_bytes(Family::sm80, 128));

template <class T, int kDim, Votes kVotes>
LACUNA_DEVICE void attend_sm80(const AttendArgs& p) {
  auto& s = *reinterpret_cast<Sm80Shared<kDim>*>(shared_memory());
  Sm80Attend<T, kDim, kVotes>(s, p).run();
}

}  // namespace lacuna::cuda
