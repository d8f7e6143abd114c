// SPDX-License-Identifier: Apache-2.0
// The attention kernel of kernel_ops.h over any vector type V (kernel_vec_*.h) with
//   kPairs  false: units are f32 numbers; true: units are pairs of bf16, of adjacent channels in K
//           and Q, of adjacent keys in V and P
//   dot(a, b, c)  c + a . b per 32-bit unit
//   exp2_p(x)     2^x, as exact as P needs it
//   for pairs also store_probability(dst, even key's p, odd key's p) and
//   interleave_bf16(even key's row, odd key's row or null, channels)
// Included by kernel files only: everything lives in an anonymous namespace, so that code built
// with wide ISA flags cannot be picked by the linker for others.
//
// Both products run on register tiles of R broadcast operands x kVectors vectors of query rows. K
// is packed in panels of R keys [panel][unit of depth][R], V in panels of R channels
// [panel][unit of keys][R]; R = kPanel, then 8, 4, 2, 1 for what is left over, so that packed data
// has no padding.
#pragma once

#include <stdint.h>

#include "lacuna/backend/cpu/kernel_ops.h"

namespace lacuna::cpu {
namespace {

template <class V>
struct TileKernel {
  using F = typename V::F;
  static constexpr int kLanes = V::kLanes;
  static constexpr int kPerGranule = kGranule / kLanes;  // vectors in a granule
  static constexpr int kUnit = V::kPairs ? 2 : 1;        // elements in a 32-bit unit
  static constexpr int64_t kScoreStride =
      int64_t{kVoteKeys} * kGranule;  // floats in a granule of S

  static int panel_width(int left) {
    if (left >= V::kPanel) return V::kPanel;
    for (int width = 8; width > 1; width /= 2)
      if (width < V::kPanel && left >= width) return width;
    return 1;
  }
  static int granules(int rows) { return (rows + kGranule - 1) / kGranule; }
  static int64_t vector_offset(int vector, int64_t granule_stride) {
    return vector / kPerGranule * granule_stride + vector % kPerGranule * kLanes;
  }
  // Distance between neighbouring vectors of one register tile.
  static int64_t vector_stride(int64_t granule_stride) {
    return kPerGranule == 1 ? granule_stride : kLanes;
  }

  // Units [unit, unit + n) of row i; n at most kLanes, lanes past n are zero.
  static F load_units(const RowsView& x, int64_t i, int unit, int n) {
    if constexpr (V::kPairs) {
      const uint16_t* row = static_cast<const uint16_t*>(x.data) + i * x.stride;
      return V::load_n(reinterpret_cast<const float*>(row) + unit, n);
    } else if (x.dtype == AttendDType::bf16) {
      return V::load_bf16(static_cast<const uint16_t*>(x.data) + i * x.stride + unit, n);
    } else {
      return V::load_n(static_cast<const float*>(x.data) + i * x.stride + unit, n);
    }
  }

  // Rows [row, row + have) and units [unit, unit + n) of x, lanes and vectors exchanged: r[j] holds
  // unit j of every row, zero where there is none. Whole squares are compiled apart: their loads,
  // shuffles and stores need no branch and no memory in between.
  template <bool kWhole>
  static void load_square(const RowsView& x, int64_t row, int have, int unit, int n,
                          F (&r)[kLanes]) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i)
      r[i] = kWhole || i < have ? load_units(x, row + i, unit, kWhole ? kLanes : n) : V::zero();
    V::transpose(r);
  }

  // --- packing -------------------------------------------------------------------------------
  template <bool kWhole>
  static void pack_q_square(const RowsView& q, int row, int have, int unit, int n, float scale,
                            float* out) {
    F r[kLanes];
    load_square<kWhole>(q, row, have, unit, n, r);
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; ++j) {
      if (!kWhole && j >= n) break;
      if constexpr (!V::kPairs) r[j] = V::mul(r[j], V::set(scale));
      V::store(out + int64_t{unit + j} * kGranule, r[j]);
    }
  }

  static void pack_q(const RowsView& q, int32_t rows, int32_t head_dim, float scale, void* packed) {
    const int depth = head_dim / kUnit;
    float* dst = static_cast<float*>(packed);
    for (int vector = 0; vector < granules(rows) * kPerGranule; ++vector) {
      float* out = dst + vector_offset(vector, int64_t{depth} * kGranule);
      const int row = vector * kLanes, have = rows - row;
      int unit = 0;
      if (have >= kLanes)
        for (; unit + kLanes <= depth; unit += kLanes)
          pack_q_square<true>(q, row, have, unit, kLanes, scale, out);
      for (; unit < depth; unit += kLanes) {
        const int n = depth - unit < kLanes ? depth - unit : kLanes;
        pack_q_square<false>(q, row, have, unit, n, scale, out);
      }
    }
  }

  // A vector of which `width` lanes belong to `at`: the others may be rubbish for what is packed
  // next, but not past the end.
  static void store_packed(float* at, const float* end, F x, int width) {
    V::store_n(at, x, at + kLanes <= end ? kLanes : width);
  }

  template <bool kWhole>
  static void pack_k_square(const RowsView& k, int key, int width, int unit, int n, float* dst,
                            const float* end) {
    F r[kLanes];
    load_square<kWhole>(k, key, width, unit, n, r);
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; ++j)
      if (kWhole || j < n) store_packed(dst + int64_t{unit + j} * width, end, r[j], width);
  }

  static void pack_k(const RowsView& k, int32_t keys, int32_t head_dim, void* packed) {
    const int depth = head_dim / kUnit;
    float* dst = static_cast<float*>(packed);
    const float* end = dst + int64_t{keys} * depth;
    for (int key = 0; key < keys;) {
      const int width = panel_width(keys - key);
      int unit = 0;
      // Keys past the panel are read with it and written again with their own.
      if (keys - key >= kLanes)
        for (; unit + kLanes <= depth; unit += kLanes)
          pack_k_square<true>(k, key, width, unit, kLanes, dst, end);
      for (; unit < depth; unit += kLanes) {
        const int n = depth - unit < kLanes ? depth - unit : kLanes;
        pack_k_square<false>(k, key, width, unit, n, dst, end);
      }
      dst += int64_t{width} * depth;
      key += width;
    }
  }

  // Channels [channel, channel + n) of one key, or of the pair of keys that makes a unit.
  static F load_value(const RowsView& v, int32_t keys, int unit, int channel, int n) {
    if constexpr (V::kPairs) {
      const uint16_t* row = static_cast<const uint16_t*>(v.data) + 2 * unit * v.stride + channel;
      const bool odd = 2 * unit + 1 < keys;  // the second key of the last pair may not exist
      return V::interleave_bf16(row, odd ? row + v.stride : nullptr, n);
    } else {
      return load_units(v, unit, channel, n);
    }
  }

  static void pack_v(const RowsView& v, int32_t keys, int32_t head_dim, void* packed) {
    static_assert(V::kPanel <= kLanes);
    const int units = (keys + kUnit - 1) / kUnit;
    for (int unit = 0; unit < units; ++unit) {
      float* dst = static_cast<float*>(packed);
      int channel = 0;
      if (unit * V::kPanel + kLanes <= units * V::kPanel)
        for (; channel + kLanes <= head_dim; channel += V::kPanel, dst += V::kPanel * units)
          V::store_n(dst + unit * V::kPanel, load_value(v, keys, unit, channel, kLanes), kLanes);
      while (channel < head_dim) {
        const int width = panel_width(head_dim - channel);
        V::store_n(dst + int64_t{unit} * width, load_value(v, keys, unit, channel, width), width);
        dst += int64_t{width} * units;
        channel += width;
      }
    }
  }

  // --- S^T = K Q^T ----------------------------------------------------------------------------
  struct ScoreArgs {
    const float* q;
    int64_t q_stride;  // between vectors
    int depth;
    float scale;
    const float* bias;
    float* s;
    int64_t s_stride;
    float* mhat;
  };

  template <int R, int N>
  static void score_panel(const ScoreArgs& a, const float* k) {
    F acc[R][N];
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) acc[i][j] = V::zero();
    const float* q = a.q;
    // Unrolled: 11 instructions for 6 FMA leave little to a core that shares its front end.
#pragma GCC unroll 4
    for (int unit = 0; unit < a.depth; ++unit, k += R, q += kGranule) {
      F x[N];
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) x[j] = V::load(q + j * a.q_stride);
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) {
        const F y = V::set(k[i]);
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) acc[i][j] = V::dot(y, x[j], acc[i][j]);
      }
    }
    F top[N];
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) top[j] = V::load(a.mhat + j * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const F bias = a.bias != nullptr ? V::set(a.bias[i]) : V::zero();
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) {
        // f32 kernels scale Q while packing: a.scale is 1 there.
        const F x = V::kPairs ? V::fma(acc[i][j], V::set(a.scale), bias) : V::add(acc[i][j], bias);
        V::store(a.s + i * kGranule + j * a.s_stride, x);
        top[j] = V::max(top[j], x);
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) V::store(a.mhat + j * kLanes, top[j]);
  }

  template <int N>
  static void score_width(const ScoreArgs& a, const float* k, int width) {
    if (width == V::kPanel) return score_panel<V::kPanel, N>(a, k);
    if constexpr (V::kPanel > 8)
      if (width == 8) return score_panel<8, N>(a, k);
    if (width == 4) return score_panel<4, N>(a, k);
    if (width == 2) return score_panel<2, N>(a, k);
    score_panel<1, N>(a, k);
  }

  static void prefetch(const char* next, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += 64) __builtin_prefetch(next + i, 0, 2);  // into L2
  }

  static void scores(const void* packed_k, const void* packed_q, int32_t keys, int32_t rows,
                     int32_t head_dim, float scale, const float* key_bias, float* s,
                     TileRows* state, const char* next, int64_t next_bytes) {
    const int vectors = granules(rows) * kPerGranule;
    const int depth = head_dim / kUnit;
    const int64_t q_granule = int64_t{depth} * kGranule;
    for (int v = 0; v < vectors; ++v) V::store(state->mhat + v * kLanes, V::set(-__builtin_inff()));
    // Few query vectors against all keys: the vectors stay in L1 while K streams from L2.
    for (int v = 0; v < vectors; v += V::kVectors) {
      ScoreArgs a{static_cast<const float*>(packed_q) + vector_offset(v, q_granule),
                  vector_stride(q_granule),
                  depth,
                  scale,
                  key_bias,
                  s + vector_offset(v, kScoreStride),
                  vector_stride(kScoreStride),
                  state->mhat + v * kLanes};
      const float* k = static_cast<const float*>(packed_k);
      for (int key = 0; key < keys;) {
        const int width = panel_width(keys - key);
        if (v == 0 && next != nullptr)
          prefetch(next, next_bytes * key / keys, next_bytes * (key + width) / keys);
        if (vectors - v >= V::kVectors) {
          score_width<V::kVectors>(a, k, width);
        } else {
          score_width<1>(a, k, width);
        }
        a.s += width * kGranule;
        if (a.bias != nullptr) a.bias += width;
        k += int64_t{width} * depth;
        key += width;
      }
    }
  }

  // --- P = 2^(S - m) --------------------------------------------------------------------------
  static void softmax(float* s, int32_t keys, int32_t rows, float slack, TileRows* state) {
    for (int v = 0; v < granules(rows) * kPerGranule; ++v) {
      const int at = v * kLanes;
      float* x = s + vector_offset(v, kScoreStride);
      const F before = V::load(state->m + at);
      const F m = V::raise(before, V::load(state->mhat + at), V::set(slack));
      const F shift = V::finite_or_zero(m);
      const F alpha = V::exp2(V::sub(before, shift));
      F sum = V::zero(), sum_odd = V::zero();
      int key = 0;
      if constexpr (V::kPairs) {
        for (; key < keys; key += 2) {
          const F even = V::exp2_p(V::sub(V::load(x + key * kGranule), shift));
          F odd = V::zero();
          if (key + 1 < keys) odd = V::exp2_p(V::sub(V::load(x + (key + 1) * kGranule), shift));
          sum = V::add(sum, even);
          sum_odd = V::add(sum_odd, odd);
          V::store_probability(x + key / 2 * kGranule, even, odd);
        }
      } else {
        for (; key + 2 <= keys; key += 2) {
          const F even = V::exp2_p(V::sub(V::load(x + key * kGranule), shift));
          const F odd = V::exp2_p(V::sub(V::load(x + (key + 1) * kGranule), shift));
          sum = V::add(sum, even);
          sum_odd = V::add(sum_odd, odd);
          V::store(x + key * kGranule, even);
          V::store(x + (key + 1) * kGranule, odd);
        }
        if (key < keys) {
          const F even = V::exp2_p(V::sub(V::load(x + key * kGranule), shift));
          sum = V::add(sum, even);
          V::store(x + key * kGranule, even);
        }
      }
      sum = V::add(sum, sum_odd);
      V::store(state->m + at, m);
      V::store(state->alpha + at, alpha);
      V::store(state->sum + at, sum);
      V::store(state->l + at, V::fma(V::load(state->l + at), alpha, sum));
    }
  }

  // --- O^T = O^T alpha + V^T P ----------------------------------------------------------------
  struct ValueArgs {
    const float* p;
    int64_t p_stride;  // between vectors
    int units;
    const float* alpha;
    bool first;
    float* o;
    int64_t o_stride;
  };

  template <int R, int N>
  static void value_panel(const ValueArgs& a, const float* v) {
    // The piece is summed from zero and then added: one long running sum over all keys would cost
    // f32 a digit at 32k keys.
    F acc[R][N];
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) acc[i][j] = V::zero();
    const float* p = a.p;
#pragma GCC unroll 4
    for (int unit = 0; unit < a.units; ++unit, v += R, p += kGranule) {
      F x[N];
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) x[j] = V::load(p + j * a.p_stride);
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) {
        const F y = V::set(v[i]);
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) acc[i][j] = V::dot(y, x[j], acc[i][j]);
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) {
      const F alpha = V::load(a.alpha + j * kLanes);
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) {
        float* o = a.o + i * kGranule + j * a.o_stride;
        V::store(o, a.first ? acc[i][j] : V::fma(V::load(o), alpha, acc[i][j]));
      }
    }
  }

  template <int N>
  static void value_width(const ValueArgs& a, const float* v, int width) {
    if (width == V::kPanel) return value_panel<V::kPanel, N>(a, v);
    if constexpr (V::kPanel > 8)
      if (width == 8) return value_panel<8, N>(a, v);
    if (width == 4) return value_panel<4, N>(a, v);
    if (width == 2) return value_panel<2, N>(a, v);
    value_panel<1, N>(a, v);
  }

  static void accumulate(const void* packed_v, const void* p, int32_t keys, int32_t rows,
                         int32_t head_dim, bool first, const TileRows* state, float* o,
                         const char* next, int64_t next_bytes) {
    const int vectors = granules(rows) * kPerGranule;
    const int units = (keys + kUnit - 1) / kUnit;
    const int64_t o_granule = int64_t{head_dim} * kGranule;
    for (int v = 0; v < vectors; v += V::kVectors) {
      ValueArgs a{static_cast<const float*>(p) + vector_offset(v, kScoreStride),
                  vector_stride(kScoreStride),
                  units,
                  state->alpha + v * kLanes,
                  first,
                  o + vector_offset(v, o_granule),
                  vector_stride(o_granule)};
      const float* values = static_cast<const float*>(packed_v);
      for (int channel = 0; channel < head_dim;) {
        const int width = panel_width(head_dim - channel);
        if (v == 0 && next != nullptr)
          prefetch(next, next_bytes * channel / head_dim,
                   next_bytes * (channel + width) / head_dim);
        if (vectors - v >= V::kVectors) {
          value_width<V::kVectors>(a, values, width);
        } else {
          value_width<1>(a, values, width);
        }
        a.o += width * kGranule;
        values += int64_t{width} * units;
        channel += width;
      }
    }
  }

  // --- out = O / l ----------------------------------------------------------------------------
  // Channels [channel, channel + n) of `count` rows.
  template <bool kWhole>
  static void finish_square(const float* o, F scale, int count, int channel, int n, void* out,
                            int64_t out_stride, AttendDType dtype) {
    F r[kLanes];
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; ++j)
      r[j] = kWhole || (o != nullptr && j < n)
                 ? V::mul(V::load(o + int64_t{channel + j} * kGranule), scale)
                 : V::zero();
    V::transpose(r);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (!kWhole && i >= count) break;
      const int64_t at = i * out_stride + channel;
      if (dtype == AttendDType::bf16) {
        V::store_bf16(static_cast<uint16_t*>(out) + at, r[i], kWhole ? kLanes : n);
      } else {
        V::store_n(static_cast<float*>(out) + at, r[i], kWhole ? kLanes : n);
      }
    }
  }

  static void finish(const float* o, int32_t rows, int32_t head_dim, const TileRows* state,
                     void* out, int64_t out_stride, AttendDType dtype) {
    const int64_t element = dtype == AttendDType::bf16 ? 2 : 4;
    for (int v = 0; v < granules(rows) * kPerGranule; ++v) {
      const F scale = V::inverse_or_zero(V::load(state->l + v * kLanes));
      const int row = v * kLanes, count = rows - row;
      if (count <= 0) break;
      const float* from =
          o != nullptr ? o + vector_offset(v, int64_t{head_dim} * kGranule) : nullptr;
      char* to = static_cast<char*>(out) + row * out_stride * element;
      int channel = 0;
      if (o != nullptr && count >= kLanes)
        for (; channel + kLanes <= head_dim; channel += kLanes)
          finish_square<true>(from, scale, count, channel, kLanes, to, out_stride, dtype);
      for (; channel < head_dim; channel += kLanes) {
        const int n = head_dim - channel < kLanes ? head_dim - channel : kLanes;
        finish_square<false>(from, scale, count, channel, n, to, out_stride, dtype);
      }
    }
  }

  static void exp2_rows(const float* x, float* y) {
    for (int i = 0; i < kVoteRows; i += kLanes) V::store(y + i, V::exp2(V::load(x + i)));
  }

  static constexpr KernelOps ops(const char* name) {
    KernelOps ops{};
    ops.name = name;
    ops.element_bytes = V::kPairs ? 2 : 4;
    ops.key_multiple = ops.dim_multiple = kUnit;
    ops.pack_q = pack_q;
    ops.pack_k = pack_k;
    ops.pack_v = pack_v;
    ops.scores = scores;
    ops.softmax = softmax;
    ops.accumulate = accumulate;
    ops.finish = finish;
    ops.exp2_rows = exp2_rows;
    return ops;
  }
};

}  // namespace
}  // namespace lacuna::cpu
