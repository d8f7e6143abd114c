// SPDX-License-Identifier: Apache-2.0
// Online softmax and skip votes on accumulator fragments, shared by all attention kernels.
//
// Fragment: mma.sync and wgmma leave a tile of 16 rows x 128 keys in a warp alike. A thread holds
// rows r = lane / 4 and r + 8; element 4 g + 2 i + e is row r + 8 i, key 8 g + 2 (lane % 4) + e.
// Four neighbouring lanes (a quad) share a row.
#pragma once

#include "lacuna/backend/cuda/ptx.cuh"

namespace lacuna::cuda {

LACUNA_DEVICE float quad_max(float x) {
  x = max_of(x, shuffle_xor(x, 1));
  return max_of(x, shuffle_xor(x, 2));
}
LACUNA_DEVICE float quad_sum(float x) {
  x += shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
}

// A job and a key tile as one half sees them. Scalars on purpose: indexing a local array by the
// half would put it into local memory.
struct HalfJob {
  int head, call, row, rows, num_tiles;
  int64_t out_begin;
};
LACUNA_DEVICE HalfJob half_job(const Job& job, int half) {
  return {job.head, job.call, job.row[half], job.rows[half], job.num_tiles, job.out_begin};
}
struct HalfTile {
  int key[2], valid[2];
};
LACUNA_DEVICE HalfTile half_tile(const KeyTile& tile, int half) {
  return {{tile.key[0], tile.key[1]}, {tile.valid[half][0], tile.valid[half][1]}};
}

// Bias rows of a thread's two query rows. Rows past the half's end read the first row's: nothing of
// them is stored.
LACUNA_DEVICE void bias_rows(const AttendArgs& p, const HalfJob& job, int warp, int lane,
                             const float* (&rows)[2]) {
  LACUNA_UNROLL
  for (int i = 0; i < 2; ++i) {
    const int row = warp * 16 + (lane >> 2) + 8 * i;
    const int64_t token = job.row + (row < job.rows ? row : 0);
    rows[i] = p.bias == nullptr ? nullptr
                                : p.bias + job.head * p.bias_head_stride + token * p.bias_q_stride;
  }
}

// Masks the keys of a half's tile that do not count.
LACUNA_DEVICE void mask_logits(float (&s)[64], const HalfTile& tile, int lane) {
  LACUNA_UNROLL
  for (int i = 0; i < 64; ++i) {
    const int key = ((i >> 2) & 7) * 8 + (lane & 3) * 2 + (i & 1);
    if (key >= tile.valid[i >> 5]) s[i] = minus_infinity();
  }
}

// Adds the bias to logits of keys that count. The loads are volatile so that the compiler does not
// hoist all 64 of them: there are no registers for that beside the accumulators.
LACUNA_DEVICE void add_bias(float (&s)[64], const HalfTile& tile, float inv_scale,
                            const float* const (&bias)[2], int lane) {
  LACUNA_UNROLL
  for (int i = 0; i < 64; ++i) {
    const int slot = i >> 5;
    const int key = ((i >> 2) & 7) * 8 + (lane & 3) * 2 + (i & 1);
    if (key < tile.valid[slot])
      s[i] =
          multiply_add(load_volatile(bias[(i >> 1) & 1] + tile.key[slot] + key), inv_scale, s[i]);
  }
}

// State of one half over the walk: the two rows of a thread.
template <Votes kVotes>
class Softmax {
 public:
  float rescale[2];  // what sums so far must be multiplied by after step()

  LACUNA_DEVICE Softmax(const AttendArgs& p, const HalfJob& job, int half, int warp, int lane,
                        int barrier)
      : p_(p),
        half_(half),
        lane_(lane),
        row_(warp * 16 + (lane >> 2)),
        rows_(job.rows),
        barrier_(barrier) {
    if (kVotes != Votes::none) {
      threshold_ = p.threshold[job.call];
      kappa_ = p.kappa[job.call];
    }
  }

  // Turns logits into probabilities (not yet divided by the row sum) and says which slots were
  // kept, as bits. Dropped slots become zeros.
  LACUNA_DEVICE unsigned step(float (&s)[64], const HalfTile& tile, int64_t out_tile) {
    const int n0 = tile.valid[0], n1 = tile.valid[1];
    unsigned kept = (n0 > 0 ? 1u : 0u) | (n1 > 0 ? 2u : 0u);
    if constexpr (kVotes == Votes::per_slot) {
      rescale[0] = rescale[1] = 1.0f;
      if (n0 > 0 && !piece<0, 8>(s, n0, out_tile)) kept &= ~1u;
      if (n1 > 0 && !piece<8, 16>(s, n1, out_tile)) kept &= ~2u;
      if (!(kept & 1u)) clear<0, 32>(s);
      if (!(kept & 2u)) clear<32, 64>(s);
    } else {
      if (!piece<0, 16>(s, n0 + n1, out_tile)) kept = 0;
    }
    if (kVotes != Votes::none && row_ == 0 && (lane_ & 3) == 0)
      p_.kept[out_tile * 2 + half_] = static_cast<uint8_t>(kept);
    return kept;
  }

  // After the last step: factors for the output rows, and the log-sum-exp.
  LACUNA_DEVICE void finish(const HalfJob& job, float (&factor)[2]) {
    LACUNA_UNROLL
    for (int i = 0; i < 2; ++i) {
      const float l = quad_sum(l_[i]);
      const int row = row_ + 8 * i;
      // Not `l > 0`: a NaN must reach the output.
      factor[i] = l == 0.0f ? 0.0f : 1.0f / l;
      if (p_.lse != nullptr && (lane_ & 3) == 0 && row < rows_)
        p_.lse[static_cast<int64_t>(job.head) * p_.q_len + job.row + row] =
            l == 0.0f ? minus_infinity()
                      : multiply_add(m_[i], p_.scale_log2, log2_approx(l)) * kLn2;
    }
  }

 private:
  // One piece: groups [kBegin, kEnd) of 8 keys.
  template <int kBegin, int kEnd>
  LACUNA_DEVICE bool piece(float (&s)[64], int keys, int64_t out_tile) {
    float top[2] = {minus_infinity(), minus_infinity()};
    LACUNA_UNROLL
    for (int g = kBegin; g < kEnd; ++g) {
      top[0] = max_of(top[0], max_of(s[4 * g], s[4 * g + 1]));
      top[1] = max_of(top[1], max_of(s[4 * g + 2], s[4 * g + 3]));
    }
    top[0] = quad_max(top[0]);
    top[1] = quad_max(top[1]);
    if constexpr (kVotes != Votes::none) {
      if (any_kept_ && drop(top, keys)) return false;
      any_kept_ = true;
    }
    exponentials<kBegin, kEnd>(s, top, out_tile);
    return true;
  }

  template <int kBegin, int kEnd>
  LACUNA_DEVICE void exponentials(float (&s)[64], const float (&top)[2], int64_t out_tile) {
    LACUNA_UNROLL
    for (int i = 0; i < 2; ++i) {
      const float m = max_of(m_[i], top[i]);
      // A row that has seen -inf only must not compute inf - inf.
      const float shift = m == minus_infinity() ? 0.0f : m * p_.scale_log2;
      const float factor = exp2_approx(multiply_add(m_[i], p_.scale_log2, -shift));
      m_[i] = m;
      float sum[2] = {0.0f, 0.0f};  // by slot
      LACUNA_UNROLL
      for (int g = kBegin; g < kEnd; ++g) LACUNA_UNROLL
      for (int e = 0; e < 2; ++e) {
        float& x = s[4 * g + 2 * i + e];
        x = exp2_approx(multiply_add(x, p_.scale_log2, -shift));
        sum[g >> 3] += x;
      }
      l_[i] = l_[i] * factor + (sum[0] + sum[1]);
      u_[i] *= factor;
      if (kVotes == Votes::per_slot && kBegin == 8) {
        // The first slot's probabilities still refer to the maximum before this piece.
        LACUNA_UNROLL
        for (int g = 0; g < 8; ++g) {
          s[4 * g + 2 * i] *= factor;
          s[4 * g + 2 * i + 1] *= factor;
        }
      }
      rescale[i] = kVotes == Votes::per_slot ? rescale[i] * factor : factor;
      if (p_.slot_lse != nullptr) {
        if (kBegin == 0) write_slot_lse(sum[0], shift, out_tile * 2, i);
        if (kEnd == 16) write_slot_lse(sum[1], shift, out_tile * 2 + 1, i);
      }
    }
  }

  LACUNA_DEVICE void write_slot_lse(float sum, float shift, int64_t slot, int i) {
    sum = quad_sum(sum);
    if ((lane_ & 3) == 0)
      p_.slot_lse[slot * (2 * kHalfRows) + half_ * kHalfRows + row_ + 8 * i] =
          sum == 0.0f ? minus_infinity() : shift + log2_approx(sum);
  }

  // The vote of all rows of the half; rows past its end agree. ref/skip_rule.h has the formulas in
  // natural logarithms, these are the same in base 2.
  LACUNA_DEVICE bool drop(const float (&top)[2], int keys) {
    bool agree = true;
    float bound[2];
    LACUNA_UNROLL
    for (int i = 0; i < 2; ++i) {
      const float above = (top[i] - m_[i]) * p_.scale_log2;
      bool skip = false;
      bound[i] = 0.0f;
      if (p_.skip == SkipKind::running_max) {
        skip = above < threshold_;
      } else {
        const float l = quad_sum(l_[i]);
        if (p_.skip == SkipKind::running_lse) {
          skip = above - log2_approx(l) < threshold_;
        } else {
          bound[i] = kappa_ * static_cast<float>(keys) * exp2_approx(above);
          skip = u_[i] + bound[i] <= threshold_ * l;
        }
      }
      // A row that has kept nothing yet is infinitely far above its maximum: no rule skips it.
      const bool nothing_to_lose = top[i] == minus_infinity();
      if (nothing_to_lose) bound[i] = 0.0f;
      agree = agree && (row_ + 8 * i >= rows_ || nothing_to_lose || skip);
    }
    if (!barrier_all(barrier_, 2 * kHalfRows, agree)) return false;
    u_[0] += bound[0];
    u_[1] += bound[1];
    return true;
  }

  template <int kBegin, int kEnd>
  LACUNA_DEVICE void clear(float (&s)[64]) {
    LACUNA_UNROLL
    for (int i = kBegin; i < kEnd; ++i) s[i] = 0.0f;
  }

  const AttendArgs& p_;
  const int half_, lane_, row_, rows_, barrier_;
  float threshold_ = 0.0f, kappa_ = 1.0f;
  bool any_kept_ = false;
  float m_[2] = {minus_infinity(), minus_infinity()};  // running maximum of kept raw products
  float l_[2] = {0.0f, 0.0f};                          // this thread's share of the row sum
  float u_[2] = {0.0f, 0.0f};                          // recall rule: bound on the dropped mass
};

// Probabilities as the A operand of P V: the accumulator fragment of two groups of 8 keys is the A
// fragment of 16 keys.
template <class T>
LACUNA_DEVICE void pack_probabilities(const float (&s)[64], uint32_t (&packed)[32]) {
  LACUNA_UNROLL
  for (int i = 0; i < 32; ++i) packed[i] = pack_pair(s[2 * i], s[2 * i + 1], T());
}

// Output rows, divided by their sums, in the fragment layout: element 4 g + 2 i + e is row r + 8 i,
// channel 8 g + 2 (lane % 4) + e. Plain stores, for tiles that end inside the tensor.
template <class T, int kDim>
LACUNA_DEVICE void store_rows(const float (&o)[kDim / 2], const float (&factor)[2],
                              const HalfJob& job, const AttendArgs& p, int warp, int lane) {
  LACUNA_UNROLL
  for (int i = 0; i < 2; ++i) {
    const int row = warp * 16 + (lane >> 2) + 8 * i;
    if (row >= job.rows) continue;
    uint16_t* out = static_cast<uint16_t*>(p.out) + job.head * p.out_head_stride +
                    (job.row + row) * p.out_token_stride + (lane & 3) * 2;
    LACUNA_UNROLL
    for (int g = 0; g < kDim / 8; ++g)
      store_global(out + g * 8,
                   pack_pair(o[4 * g + 2 * i] * factor[i], o[4 * g + 2 * i + 1] * factor[i], T()));
  }
}

}  // namespace lacuna::cuda
