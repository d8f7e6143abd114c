// SPDX-License-Identifier: Apache-2.0
// bf16 attention on AMX tiles (16 rows of 64 bytes; C[16][16] f32 += A[16][32] B[32][16] bf16).
//
// The layouts of kernel_tile.h for Q, P, S and O are already those of B and C tiles: [granule]
// [pair][16] holds a B tile in 16 rows, [granule][key or channel][16] a C tile. Only the A side is
// packed for AMX: K as [16 keys][32 channels] tiles, V^T as [16 channels][32 keys] tiles.
//
// A C tile cannot be stored before its last product is done, so two pairs of accumulators take
// turns: while one pair computes, the other is stored (and, for O, the next loaded). All widths are
// those of two granules; an odd last granule computes on rubbish that nobody reads.
//
// Never run on a processor with AMX (docs/kernels.md): tests carry out its tile instructions in
// software.
#include "lacuna/backend/cpu/kernel_tile.h"
#include "lacuna/backend/cpu/kernel_vec_avx512bf16.h"

// Tile numbers are part of the instruction: macros, not functions. Two intrinsics of g++ 12 do not
// say what they read: it drops stores to all but 8 bytes of a configuration, and may move stores
// past a load of a tile.
#define LACUNA_TILE_CONFIG(config) __asm__ volatile("ldtilecfg %0" ::"m"(config))
#define LACUNA_TILE_LOAD(tile, base, stride)                       \
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(base), \
                   "r"(static_cast<int64_t>(stride))               \
                   : "memory")

namespace lacuna::cpu {
namespace {

struct AmxKernel {
  using V = VecAvx512Bf16;
  using Base = TileKernel<V>;
  using F = V::F;
  static constexpr int64_t kTile = 256;  // 32-bit units in a tile
  static constexpr int64_t kRowBytes = 64;
  static constexpr int64_t kScoreStride = Base::kScoreStride;

  static int granule_pairs(int rows) { return (rows + 2 * kGranule - 1) / (2 * kGranule); }

  static void begin() {
    static constexpr struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config = {};
    static_assert(sizeof config == 64);
    LACUNA_TILE_CONFIG(config);
  }
  static void end() { _tile_release(); }

  // --- packing -------------------------------------------------------------------------------
  static void pack_q(const RowsView& q, int32_t rows, int32_t head_dim, float scale, void* packed) {
    Base::pack_q(q, rows, head_dim, scale, packed);
    const int granules = Base::granules(rows);
    if (granules % 2 == 0) return;
    const int64_t floats = int64_t{head_dim} / 2 * kGranule;
    __builtin_memset(static_cast<float*>(packed) + granules * floats, 0, floats * sizeof(float));
  }

  // [16 keys][32 channels] tiles, channels fastest; missing keys are zero rows.
  static void pack_k(const RowsView& k, int32_t keys, int32_t head_dim, void* packed) {
    char* dst = static_cast<char*>(packed);
    for (int group = 0; group < keys; group += 16) {
      for (int channel = 0; channel < head_dim; channel += 32) {
        for (int row = 0; row < 16; ++row, dst += kRowBytes) {
          const uint16_t* src = static_cast<const uint16_t*>(k.data) + channel;
          if (group + row < keys) {
            __builtin_memcpy(dst, src + (group + row) * k.stride, kRowBytes);
          } else {
            __builtin_memset(dst, 0, kRowBytes);
          }
        }
      }
    }
  }

  // [16 channels][32 keys] tiles, keys fastest; missing keys are zero.
  static void pack_v(const RowsView& v, int32_t keys, int32_t head_dim, void* packed) {
    const int key_tiles = (keys + 31) / 32;
    for (int channel = 0; channel < head_dim; channel += 16) {
      float* dst = static_cast<float*>(packed) + channel / 16 * key_tiles * kTile;
      for (int tile = 0; tile < key_tiles; ++tile, dst += kTile) {
        F r[16];
        for (int i = 0; i < 16; ++i) {
          const int key = 32 * tile + 2 * i;
          const uint16_t* even = static_cast<const uint16_t*>(v.data) + key * v.stride + channel;
          r[i] = key >= keys
                     ? V::zero()
                     : V::interleave_bf16(even, key + 1 < keys ? even + v.stride : nullptr, 16);
        }
        V::transpose(r);
        for (int i = 0; i < 16; ++i) V::store(dst + i * kGranule, r[i]);
      }
    }
  }

  // --- S^T = K Q^T ----------------------------------------------------------------------------
  struct ScoreArgs {
    const float* k;
    const float* q;
    int pairs;  // of granules
    int depth;  // tiles along head_dim
    int keys;
    float scale;
    const float* bias;
    float* s;
    TileRows* state;

    // Unit u: 16 keys x 2 granules.
    const float* k_tiles(int u) const { return k + int64_t{u / pairs} * depth * kTile; }
    const float* q_tiles(int u) const { return q + int64_t{u % pairs} * 2 * depth * kTile; }
    float* s_tile(int u) const {
      return s + int64_t{u % pairs} * 2 * kScoreStride + u / pairs * kTile;
    }
  };

  // Scales a stored unit, adds the bias and takes the maxima: vector work in the shadow of the
  // next units' products. part / parts of the unit's keys.
  static void finish_scores(const ScoreArgs& a, int u, int part, int parts) {
    if (u < 0) return;
    const int first_key = u / a.pairs * 16;
    const int begin = 16 * part / parts;
    int end = 16 * (part + 1) / parts;
    if (end > a.keys - first_key) end = a.keys - first_key;
    const F scale = V::set(a.scale);
    for (int g = 0; g < 2; ++g) {
      float* s = a.s_tile(u) + g * kScoreStride;
      float* mhat = a.state->mhat + (u % a.pairs * 2 + g) * kGranule;
      F top = V::load(mhat);
      for (int i = begin; i < end; ++i) {
        const F bias = a.bias != nullptr ? V::set(a.bias[first_key + i]) : V::zero();
        const F x = V::fma(V::load(s + i * kGranule), scale, bias);
        V::store(s + i * kGranule, x);
        top = V::max(top, x);
      }
      V::store(mhat, top);
    }
  }

// Unit u into tiles c0, c1 while unit u - 1 in p0, p1 is stored and unit u - 2 is finished.
#define LACUNA_SCORE_UNIT(a, u, c0, c1, p0, p1)                        \
  do {                                                                 \
    _tile_zero(c0);                                                    \
    _tile_zero(c1);                                                    \
    const float *k = (a).k_tiles(u), *q = (a).q_tiles(u);              \
    for (int d = 0; d < (a).depth; ++d, k += kTile, q += kTile) {      \
      LACUNA_TILE_LOAD(4, k, kRowBytes);                               \
      LACUNA_TILE_LOAD(5, q, kRowBytes);                               \
      _tile_dpbf16ps(c0, 4, 5);                                        \
      LACUNA_TILE_LOAD(6, q + (a).depth * kTile, kRowBytes);           \
      _tile_dpbf16ps(c1, 4, 6);                                        \
      if (d == 0 && (u) > 0) {                                         \
        _tile_stored(p0, (a).s_tile((u)-1), kRowBytes);                \
        _tile_stored(p1, (a).s_tile((u)-1) + kScoreStride, kRowBytes); \
      }                                                                \
      finish_scores(a, (u)-2, d, (a).depth);                           \
    }                                                                  \
  } while (false)

  static void scores(const void* packed_k, const void* packed_q, int32_t keys, int32_t rows,
                     int32_t head_dim, float scale, const float* key_bias, float* s,
                     TileRows* state, const char* next, int64_t next_bytes) {
    const ScoreArgs a{static_cast<const float*>(packed_k),
                      static_cast<const float*>(packed_q),
                      granule_pairs(rows),
                      head_dim / 32,
                      keys,
                      scale,
                      key_bias,
                      s,
                      state};
    for (int v = 0; v < 2 * a.pairs; ++v)
      V::store(state->mhat + v * kGranule, V::set(-__builtin_inff()));
    const int units = (keys + 15) / 16 * a.pairs;
    for (int u = 0; u < units; u += 2) {
      if (next != nullptr)
        Base::prefetch(next, next_bytes * u / units, next_bytes * (u + 2) / units);
      LACUNA_SCORE_UNIT(a, u, 0, 1, 2, 3);
      if (u + 1 < units) LACUNA_SCORE_UNIT(a, u + 1, 2, 3, 0, 1);
    }
    const int last = units - 1;
    if (last % 2 == 0) {
      _tile_stored(0, a.s_tile(last), kRowBytes);
      _tile_stored(1, a.s_tile(last) + kScoreStride, kRowBytes);
    } else {
      _tile_stored(2, a.s_tile(last), kRowBytes);
      _tile_stored(3, a.s_tile(last) + kScoreStride, kRowBytes);
    }
    finish_scores(a, last - 1, 0, 1);
    finish_scores(a, last, 0, 1);
  }
#undef LACUNA_SCORE_UNIT

  // As in kernel_tile.h; P is filled with zeros to whole tiles of 32 keys.
  static void softmax(float* s, int32_t keys, int32_t rows, float slack, TileRows* state) {
    Base::softmax(s, keys, rows, slack, state);
    const int used = (keys + 1) / 2, wanted = (keys + 31) / 32 * 16;
    for (int g = 0; g < Base::granules(rows); ++g)
      for (int i = used; i < wanted; ++i) V::store(s + g * kScoreStride + i * kGranule, V::zero());
  }

  // --- O^T = O^T alpha + V^T P ----------------------------------------------------------------
  struct ValueArgs {
    const float* v;
    const float* p;
    int pairs;
    int depth;  // tiles along the keys
    float* o;
    int64_t o_stride;  // of a granule
    bool first;

    // Unit u: 16 channels x 2 granules.
    const float* v_tiles(int u) const { return v + int64_t{u / pairs} * depth * kTile; }
    const float* p_tiles(int u) const { return p + int64_t{u % pairs} * 2 * kScoreStride; }
    float* o_tile(int u) const { return o + u % pairs * 2 * o_stride + u / pairs * kTile; }
  };

  static bool all_ones(const TileRows& state, int granules) {
    for (int g = 0; g < granules; ++g)
      if (_mm512_cmp_ps_mask(V::load(state.alpha + g * kGranule), V::set(1.0f), _CMP_NEQ_UQ) != 0)
        return false;
    return true;
  }

  static void rescale(const ValueArgs& a, const TileRows& state, int granules, int head_dim) {
    for (int g = 0; g < granules; ++g) {
      const F alpha = V::load(state.alpha + g * kGranule);
      float* o = a.o + g * a.o_stride;
      for (int c = 0; c < head_dim; ++c)
        V::store(o + c * kGranule, V::mul(V::load(o + c * kGranule), alpha));
    }
  }

#define LACUNA_VALUE_BEGIN(a, u, c0, c1)                             \
  do {                                                               \
    if ((a).first) {                                                 \
      _tile_zero(c0);                                                \
      _tile_zero(c1);                                                \
    } else {                                                         \
      LACUNA_TILE_LOAD(c0, (a).o_tile(u), kRowBytes);                \
      LACUNA_TILE_LOAD(c1, (a).o_tile(u) + (a).o_stride, kRowBytes); \
    }                                                                \
  } while (false)
#define LACUNA_VALUE_STORE(a, u, c0, c1)                       \
  do {                                                         \
    _tile_stored(c0, (a).o_tile(u), kRowBytes);                \
    _tile_stored(c1, (a).o_tile(u) + (a).o_stride, kRowBytes); \
  } while (false)
// Unit u in tiles c0, c1 (begun before) while unit u - 1 in p0, p1 is stored and unit u + 1 begun.
#define LACUNA_VALUE_UNIT(a, u, units, c0, c1, p0, p1)             \
  do {                                                             \
    const float *v = (a).v_tiles(u), *p = (a).p_tiles(u);          \
    for (int k = 0; k < (a).depth; ++k, v += kTile, p += kTile) {  \
      LACUNA_TILE_LOAD(4, v, kRowBytes);                           \
      LACUNA_TILE_LOAD(5, p, kRowBytes);                           \
      _tile_dpbf16ps(c0, 4, 5);                                    \
      LACUNA_TILE_LOAD(6, p + kScoreStride, kRowBytes);            \
      _tile_dpbf16ps(c1, 4, 6);                                    \
      if (k == 0 && (u) > 0) LACUNA_VALUE_STORE(a, (u)-1, p0, p1); \
    }                                                              \
    if ((u) + 1 < (units)) LACUNA_VALUE_BEGIN(a, (u) + 1, p0, p1); \
  } while (false)

  static void accumulate(const void* packed_v, const void* p, int32_t keys, int32_t rows,
                         int32_t head_dim, bool first, const TileRows* state, float* o,
                         const char* next, int64_t next_bytes) {
    const ValueArgs a{static_cast<const float*>(packed_v),
                      static_cast<const float*>(p),
                      granule_pairs(rows),
                      (keys + 31) / 32,
                      o,
                      int64_t{head_dim} * kGranule,
                      first};
    const int granules = Base::granules(rows);
    if (!first && !all_ones(*state, granules)) rescale(a, *state, granules, head_dim);
    const int units = head_dim / 16 * a.pairs;  // even: head_dim is a multiple of 32
    LACUNA_VALUE_BEGIN(a, 0, 0, 1);
    for (int u = 0; u < units; u += 2) {
      if (next != nullptr)
        Base::prefetch(next, next_bytes * u / units, next_bytes * (u + 2) / units);
      LACUNA_VALUE_UNIT(a, u, units, 0, 1, 2, 3);
      LACUNA_VALUE_UNIT(a, u + 1, units, 2, 3, 0, 1);
    }
    LACUNA_VALUE_STORE(a, units - 1, 2, 3);
  }
#undef LACUNA_VALUE_BEGIN
#undef LACUNA_VALUE_STORE
#undef LACUNA_VALUE_UNIT

  static constexpr KernelOps ops(const char* name) {
    KernelOps ops = Base::ops(name);
    ops.key_multiple = 32;
    ops.dim_multiple = 32;
    ops.max_slack = 8.0f;  // P up to 2^8: harmless in bf16 and f32, and O is rescaled rarely
    ops.begin = begin;
    ops.end = end;
    ops.pack_q = pack_q;
    ops.pack_k = pack_k;
    ops.pack_v = pack_v;
    ops.scores = scores;
    ops.softmax = softmax;
    ops.accumulate = accumulate;
    return ops;
  }
};

}  // namespace

constinit const KernelOps kAttendBf16Amx = AmxKernel::ops("bf16 amx");

}  // namespace lacuna::cpu
