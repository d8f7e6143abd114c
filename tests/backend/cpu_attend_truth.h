// SPDX-License-Identifier: Apache-2.0
// Attention calls on buffers whose unused elements are NaN, and a plain double-precision attention
// with the skip rules, for the CPU attention tests.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "lacuna/backend/cpu/attend.h"
#include "lacuna/core/bf16.h"
#include "lacuna/core/block_mask.h"

namespace lacuna::cpu {

inline constexpr float kInf = std::numeric_limits<float>::infinity();
inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  double uniform() {  // [0, 1)
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<double>(state_ >> 11) * 0x1.0p-53;
  }
  float normal() {
    const double r = std::sqrt(-2.0 * std::log(1.0 - uniform()));
    return static_cast<float>(r * std::cos(6.283185307179586 * uniform()));
  }
  int below(int n) { return static_cast<int>(uniform() * n); }

 private:
  uint64_t state_;
};

// [heads, tokens, head_dim] with gaps of NaN between tokens and between heads.
struct Rows {
  int64_t heads, tokens, dim, token_stride, head_stride;
  bool bf16;
  std::vector<float> values;  // what the memory holds, exactly
  std::vector<BFloat16> half;

  Rows(int64_t heads_, int64_t tokens_, int64_t dim_, bool bf16_)
      : heads(heads_), tokens(tokens_), dim(dim_), token_stride(dim_ + 3), bf16(bf16_) {
    head_stride = tokens * token_stride + 5;
    values.assign(static_cast<size_t>(heads * head_stride), kNan);
    sync();
  }
  float& at(int64_t h, int64_t i, int64_t c) {
    return values[static_cast<size_t>(h * head_stride + i * token_stride + c)];
  }
  float get(int64_t h, int64_t i, int64_t c) const {
    return values[static_cast<size_t>(h * head_stride + i * token_stride + c)];
  }
  template <typename F>
  void fill(const F& value) {
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t i = 0; i < tokens; ++i)
        for (int64_t c = 0; c < dim; ++c) at(h, i, c) = value(h, i, c);
    sync();
  }
  // values -> memory of the tensor's type, rounding values on the way.
  void sync() {
    if (!bf16) return;
    half.resize(values.size());
    for (size_t i = 0; i < values.size(); ++i) {
      half[i] = BFloat16(values[i]);
      values[i] = static_cast<float>(half[i]);
    }
  }
  void* data() { return bf16 ? static_cast<void*>(half.data()) : values.data(); }
  void read_back() {
    for (size_t i = 0; bf16 && i < values.size(); ++i) values[i] = static_cast<float>(half[i]);
  }
};

// A call with everything it points to.
struct Call {
  Rows q, k, v, out;
  AttendParams p;
  std::vector<int32_t> q_offsets, k_offsets, head_ids;
  std::vector<int64_t> pv_pairs;
  BlockMask mask;  // empty = dense
  std::vector<float> bias, skip_param, skip_kappa, lse, mass;
  std::vector<uint64_t> bits;

  Call(int64_t heads, int64_t q_len, int64_t k_len, int64_t dim, bool bf16, uint64_t seed = 1)
      : q(heads, q_len, dim, bf16),
        k(heads, k_len, dim, bf16),
        v(heads, k_len, dim, bf16),
        out(heads, q_len, dim, bf16) {
    Random random(seed);
    const auto normal = [&](int64_t, int64_t, int64_t) { return random.normal(); };
    q.fill(normal);
    k.fill(normal);
    v.fill(normal);
    p.dtype = bf16 ? AttendDType::bf16 : AttendDType::f32;
    p.num_heads = static_cast<int32_t>(heads);
    p.q_len = q_len;
    p.k_len = k_len;
    p.head_dim = static_cast<int32_t>(dim);
    p.sm_scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim)));
    uniform(128, 128);
  }
  void uniform(int32_t block_q, int32_t block_k) {
    p.block_q = block_q;
    p.block_k = block_k;
    p.num_q_blocks = static_cast<int32_t>((p.q_len + block_q - 1) / block_q);
    p.num_k_blocks = static_cast<int32_t>((p.k_len + block_k - 1) / block_k);
  }
  // Random clusters, among them empty ones.
  void clusters(int32_t q_blocks, int32_t k_blocks, uint64_t seed) {
    Random random(seed);
    const auto cut = [&](int64_t len, int32_t blocks) {
      std::vector<int32_t> offsets;
      for (int32_t h = 0; h < p.num_heads; ++h) {
        std::vector<int32_t> row = {0, static_cast<int32_t>(len)};
        for (int32_t b = 1; b < blocks; ++b) row.push_back(random.below(static_cast<int>(len) + 1));
        std::sort(row.begin(), row.end());
        if (blocks > 2) row[2] = row[1];  // one block is empty for sure
        offsets.insert(offsets.end(), row.begin(), row.end());
      }
      return offsets;
    };
    q_offsets = cut(p.q_len, q_blocks);
    k_offsets = cut(p.k_len, k_blocks);
    p.num_q_blocks = q_blocks;
    p.num_k_blocks = k_blocks;
  }
  void keep_random(double density, VisitOrder order, uint64_t seed) {
    Random random(seed);
    mask = BlockMask(p.num_heads, p.num_q_blocks, p.num_k_blocks);
    for (int32_t h = 0; h < p.num_heads; ++h)
      for (int32_t qb = 0; qb < p.num_q_blocks; ++qb)
        for (int32_t kb = 0; kb < p.num_k_blocks; ++kb)
          if (random.uniform() < density) mask.set(h, qb, kb);
    p.order = order;
  }
  // Pointers last: vectors may have moved.
  const AttendParams& params() {
    const auto view = [](Rows& rows, const void*& data, int64_t& head_stride, int64_t& stride) {
      data = rows.data();
      head_stride = rows.head_stride;
      stride = rows.token_stride;
    };
    view(q, p.q, p.q_head_stride, p.q_token_stride);
    view(k, p.k, p.k_head_stride, p.k_token_stride);
    view(v, p.v, p.v_head_stride, p.v_token_stride);
    p.out = out.data();
    p.out_head_stride = out.head_stride;
    p.out_token_stride = out.token_stride;
    p.q_offsets = q_offsets.empty() ? nullptr : q_offsets.data();
    p.k_offsets = k_offsets.empty() ? nullptr : k_offsets.data();
    p.mask = mask.empty() ? nullptr : mask.words();
    p.head_ids = head_ids.empty() ? nullptr : head_ids.data();
    p.bias = bias.empty() ? nullptr : bias.data();
    p.skip_param = skip_param.empty() ? nullptr : skip_param.data();
    p.skip_kappa = skip_kappa.empty() ? nullptr : skip_kappa.data();
    p.lse = lse.empty() ? nullptr : lse.data();
    p.block_mass = mass.empty() ? nullptr : mass.data();
    p.skip_bits = bits.empty() ? nullptr : bits.data();
    p.pv_pairs = pv_pairs.empty() ? nullptr : pv_pairs.data();
    return p;
  }
  void want_everything() {
    const size_t rows = static_cast<size_t>(q.heads) * static_cast<size_t>(p.num_q_blocks);
    lse.assign(static_cast<size_t>(q.heads * p.q_len), kNan);
    mass.assign(rows * static_cast<size_t>(p.num_k_blocks), kNan);
    bits.assign(rows * static_cast<size_t>((p.num_k_blocks + 63) / 64), ~uint64_t{0});
    pv_pairs.assign(static_cast<size_t>(p.num_heads), -1);
  }
};

struct Range {
  int64_t begin, end;
};

inline Range block_range(const int32_t* offsets, int32_t blocks, int32_t block, int64_t len,
                         int64_t call, int32_t b) {
  if (offsets != nullptr)
    return {offsets[call * (blocks + 1) + b], offsets[call * (blocks + 1) + b + 1]};
  return {int64_t{b} * block, std::min<int64_t>(int64_t{b + 1} * block, len)};
}

struct Truth {
  std::vector<double> out, lse, mass;  // contiguous
  std::vector<uint64_t> bits;
  std::vector<int64_t> pairs;
};

struct TruthRow {
  double m = -kInf, l = 0, u = 0;
  std::vector<double> logits;
};

inline bool row_skips(const AttendParams& p, int64_t call, const TruthRow& row, double top,
                      int64_t n) {
  if (top == -kInf) return true;
  if (row.m == -kInf) return false;
  const double param = p.skip_param[call];
  const double kappa = p.skip_kappa != nullptr ? p.skip_kappa[call] : 1.0;
  if (p.skip == SkipKind::running_max) return top - row.m < std::log(param);
  if (p.skip == SkipKind::running_lse) return top - row.m - std::log(row.l) < param;
  return row.u + kappa * static_cast<double>(n) * std::exp(top - row.m) <=
         (1 - param) / param * row.l;
}

// One tile of rows: logits, votes, then softmax over what was kept.
inline void truth_tile(Call& c, const BlockIndex& listed, int64_t call, int64_t h, int32_t qb,
                       Range rows, int64_t block_rows, Truth& t, std::vector<char>& kept_blocks,
                       std::vector<char>& skipped_blocks) {
  const AttendParams& p = c.p;
  struct Kept {
    Range keys;
    int32_t block;
  };
  std::vector<Kept> kept;
  std::vector<TruthRow> state(static_cast<size_t>(rows.end - rows.begin));
  const auto logit = [&](int64_t i, int64_t j) {
    const float *a = &c.q.at(h, i, 0), *b = &c.k.at(h, j, 0);
    double sums[4] = {};  // four chains: the plain sum waits for itself
    for (int64_t d = 0; d < p.head_dim; ++d) sums[d % 4] += double{a[d]} * double{b[d]};
    double x = (sums[0] + sums[1] + sums[2] + sums[3]) * double{p.sm_scale};
    if (p.bias != nullptr) x += p.bias[h * p.bias_head_stride + i * p.bias_q_stride + j];
    return x;
  };
  const auto list = static_cast<size_t>(call * p.num_q_blocks + qb);
  bool any = false;
  for (int64_t at = listed.row_begin[list]; at < listed.row_begin[list + 1]; ++at) {
    const int32_t kb = listed.cols[static_cast<size_t>(at)];
    const Range block = block_range(p.k_offsets, p.num_k_blocks, p.block_k, p.k_len, call, kb);
    for (int64_t key = block.begin; key < block.end; key += kVoteKeys) {
      const Range keys{key, std::min<int64_t>(key + kVoteKeys, block.end)};
      const int64_t n = keys.end - keys.begin;
      bool drop = p.skip != SkipKind::none && any;
      any = true;
      std::vector<double> tops;
      for (TruthRow& row : state) {
        const int64_t i = rows.begin + (&row - state.data());
        double top = -kInf;
        for (int64_t j = keys.begin; j < keys.end; ++j) {
          row.logits.push_back(logit(i, j));
          top = std::max(top, row.logits.back());
        }
        tops.push_back(top);
        drop = drop && row_skips(p, call, row, top, n);
      }
      for (size_t r = 0; r < state.size(); ++r) {
        TruthRow& row = state[r];
        const double kappa = p.skip_kappa != nullptr ? p.skip_kappa[call] : 1.0;
        if (drop) {
          if (tops[r] != -kInf) row.u += kappa * static_cast<double>(n) * std::exp(tops[r] - row.m);
          row.logits.resize(row.logits.size() - static_cast<size_t>(n));
          continue;
        }
        const double m = std::max(row.m, tops[r]);
        if (m == -kInf) continue;
        row.l *= std::exp(row.m - m);
        row.u *= std::exp(row.m - m);
        row.m = m;
        for (size_t j = row.logits.size() - static_cast<size_t>(n); j < row.logits.size(); ++j)
          row.l += std::exp(row.logits[j] - m);
      }
      (drop ? skipped_blocks : kept_blocks)[static_cast<size_t>(kb)] = 1;
      if (drop) continue;
      kept.push_back({keys, kb});
      t.pairs[static_cast<size_t>(call)] += n * (rows.end - rows.begin);
    }
  }
  for (size_t r = 0; r < state.size(); ++r) {
    const TruthRow& row = state[r];
    const int64_t i = rows.begin + static_cast<int64_t>(r);
    t.lse[static_cast<size_t>(h * p.q_len + i)] = row.l > 0 ? row.m + std::log(row.l) : -kInf;
    size_t at = 0;
    for (const Kept& piece : kept) {
      for (int64_t j = piece.keys.begin; j < piece.keys.end; ++j, ++at) {
        if (row.l == 0) continue;
        const double w = std::exp(row.logits[at] - row.m) / row.l;
        t.mass[static_cast<size_t>((h * p.num_q_blocks + qb) * p.num_k_blocks + piece.block)] +=
            w / static_cast<double>(block_rows);
        double* out = &t.out[static_cast<size_t>((h * p.q_len + i) * p.head_dim)];
        const float* v = &c.v.at(h, j, 0);
        for (int64_t d = 0; d < p.head_dim; ++d) out[d] += w * double{v[d]};
      }
    }
  }
}

inline Truth truth(Call& c) {
  const AttendParams& p = c.params();
  const BlockIndex listed =
      compact_blocks(p.mask, p.num_heads, p.num_q_blocks, p.num_k_blocks, p.order);
  Truth t;
  const size_t rows = static_cast<size_t>(c.q.heads * p.num_q_blocks);
  t.out.assign(static_cast<size_t>(c.q.heads * p.q_len * p.head_dim), 0);
  t.lse.assign(static_cast<size_t>(c.q.heads * p.q_len), 0);
  t.mass.assign(rows * static_cast<size_t>(p.num_k_blocks), 0);
  const int64_t words = (p.num_k_blocks + 63) / 64;
  t.bits.assign(rows * static_cast<size_t>(words), 0);
  t.pairs.assign(static_cast<size_t>(p.num_heads), 0);
  for (int64_t call = 0; call < p.num_heads; ++call) {
    const int64_t h = p.head_ids != nullptr ? p.head_ids[call] : call;
    for (int32_t qb = 0; qb < p.num_q_blocks; ++qb) {
      const Range block = block_range(p.q_offsets, p.num_q_blocks, p.block_q, p.q_len, call, qb);
      std::vector<char> kept(static_cast<size_t>(p.num_k_blocks)), skipped = kept;
      for (int64_t i = block.begin; i < block.end; i += kVoteRows)
        truth_tile(c, listed, call, h, qb, {i, std::min<int64_t>(i + kVoteRows, block.end)},
                   block.end - block.begin, t, kept, skipped);
      for (int32_t kb = 0; kb < p.num_k_blocks; ++kb)
        if (skipped[static_cast<size_t>(kb)] && !kept[static_cast<size_t>(kb)])
          t.bits[static_cast<size_t>((h * p.num_q_blocks + qb) * words + kb / 64)] |= uint64_t{1}
                                                                                      << (kb % 64);
    }
  }
  return t;
}

}  // namespace lacuna::cpu
