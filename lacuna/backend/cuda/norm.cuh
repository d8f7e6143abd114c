// SPDX-License-Identifier: Apache-2.0
// Norms over channels. Sums are f32 in a fixed tree: each thread its quads in order, lanes by
// butterfly, warps in order.
#pragma once

#include "lacuna/backend/cuda/network_args.h"
#include "lacuna/backend/cuda/quad.cuh"

namespace lacuna::cuda {

// Shared memory of a block that owns a row: what its warps sum, two sums in turn, then the row.
struct RowShared {
  float partial[2][kRowThreads / 32];
  LACUNA_DEVICE float* row() { return reinterpret_cast<float*>(this + 1); }
};
static_assert(sizeof(RowShared) == kRowHeadBytes && kRowHeadBytes % 16 == 0);

// The same in every thread. `turn` differs between sums that follow each other.
LACUNA_DEVICE float block_sum(RowShared& s, int turn, float x) {
  x = warp_sum(x);
  if ((thread_id() & 31) == 0) s.partial[turn][thread_id() >> 5] = x;
  sync_block();
  float sum = 0.0f;
  LACUNA_UNROLL
  for (int w = 0; w < kRowThreads / 32; ++w) sum += s.partial[turn][w];
  return sum;
}

// Each thread keeps to its own quads of the row, so that only the sums need a barrier.
LACUNA_DEVICE void keep_quad(float* row, int c, const float (&v)[4]) {
  *reinterpret_cast<Float4*>(row + c) = Float4{{v[0], v[1], v[2], v[3]}};
}
LACUNA_DEVICE Float4 kept_quad(const float* row, int c) {
  return *reinterpret_cast<const Float4*>(row + c);
}

// Keeps this thread's quads of a row of x; returns the sum of their values, or of their squares.
template <bool kSquares>
LACUNA_DEVICE float keep_row(const void* x, int64_t begin, int d, bool bf16, bool vector,
                             float* row) {
  float sum = 0.0f;
  for (int c = thread_id() * 4; c < d; c += kRowThreads * 4) {
    float v[4];
    load_quad(x, begin + c, 1, quad_count(c, d), bf16, vector, v);
    keep_quad(row, c, v);
    sum += kSquares ? (v[0] * v[0] + v[1] * v[1]) + (v[2] * v[2] + v[3] * v[3])
                    : (v[0] + v[1]) + (v[2] + v[3]);
  }
  return sum;
}

LACUNA_DEVICE void layer_norm(const LayerNormArgs& p) {
  auto& s = *reinterpret_cast<RowShared*>(shared_memory());
  float* row = s.row();
  const int64_t out_begin = block_id() * p.out_stride;
  const int begin = thread_id() * 4, step = kRowThreads * 4;
  const float sum = keep_row<false>(p.x, block_id() * p.x_stride, p.d, false, p.vector, row);
  const float mean = block_sum(s, 0, sum) / static_cast<float>(p.d);
  float squares = 0.0f;
  for (int c = begin; c < p.d; c += step) {
    const Float4 q = kept_quad(row, c);
    const int count = quad_count(c, p.d);
    LACUNA_UNROLL
    for (int e = 0; e < 4; ++e)
      if (e < count) squares += (q.v[e] - mean) * (q.v[e] - mean);
  }
  const float inv = 1.0f / square_root(block_sum(s, 1, squares) / static_cast<float>(p.d) + p.eps);
  for (int c = begin; c < p.d; c += step) {
    const Float4 q = kept_quad(row, c);
    const int count = quad_count(c, p.d);
    float y[4], v[4];
    LACUNA_UNROLL
    for (int e = 0; e < 4; ++e) y[e] = (q.v[e] - mean) * inv;
    if (p.weight != nullptr) {
      load_quad(p.weight, c, 1, count, false, true, v);
      for (int e = 0; e < 4; ++e) y[e] *= v[e];
    }
    if (p.bias != nullptr) {
      load_quad(p.bias, c, 1, count, false, true, v);
      for (int e = 0; e < 4; ++e) y[e] += v[e];
    }
    if (p.scale != nullptr) {
      load_quad(p.scale, c, 1, count, false, true, v);
      for (int e = 0; e < 4; ++e) y[e] *= 1.0f + v[e];
    }
    if (p.shift != nullptr) {
      load_quad(p.shift, c, 1, count, false, true, v);
      for (int e = 0; e < 4; ++e) y[e] += v[e];
    }
    store_quad(p.out, out_begin + c, 1, count, p.out_bf16, p.vector, y);
  }
}

// Turns the pair of channels (c, c + 1) of a token by the sum of three angles.
LACUNA_DEVICE void rotate_summed(const RmsNormArgs& p, int token, int c, float& a, float& b) {
  const int row = token / p.width;
  const int64_t position[] = {row / p.height, row % p.height, token % p.width};
  float cos = 1.0f, sin = 0.0f;
  LACUNA_UNROLL
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t at = position[axis] * p.pairs[axis] + (c >> 1);
    const float co = read_global(p.cos[axis] + at), si = read_global(p.sin[axis] + at);
    const float turned = cos * co - sin * si;
    sin = cos * si + sin * co;
    cos = turned;
  }
  const float turned = a * cos - b * sin;
  b = a * sin + b * cos;
  a = turned;
}

// Turns the pair of channels (c, c + 1) of a token.
LACUNA_DEVICE void rotate(const RmsNormArgs& p, int token, int c, float& a, float& b) {
  int pair = (c % p.head_dim) >> 1, axis = 0, position = token / (p.width * p.height);
  if (pair >= p.pairs[0]) {
    pair -= p.pairs[0];
    axis = 1, position = token / p.width % p.height;
    if (pair >= p.pairs[1]) {
      pair -= p.pairs[1];
      axis = 2, position = token % p.width;
    }
  }
  // Selected, not indexed: a kernel's arguments indexed by a variable go to local memory.
  const float* cos = axis == 0 ? p.cos[0] : axis == 1 ? p.cos[1] : p.cos[2];
  const float* sin = axis == 0 ? p.sin[0] : axis == 1 ? p.sin[1] : p.sin[2];
  const int pairs = axis == 0 ? p.pairs[0] : axis == 1 ? p.pairs[1] : p.pairs[2];
  const int64_t at = static_cast<int64_t>(position) * pairs + pair;
  const float co = read_global(cos + at), si = read_global(sin + at);
  const float turned = a * co - b * si;
  b = a * si + b * co;
  a = turned;
}

template <bool kSummed>
LACUNA_DEVICE void rms_norm(const RmsNormArgs& p) {
  auto& s = *reinterpret_cast<RowShared*>(shared_memory());
  float* row = s.row();
  const int64_t out_begin = block_id() * p.out_stride;
  const int begin = thread_id() * 4, step = kRowThreads * 4;
  const float sum = keep_row<true>(p.x, block_id() * p.x_stride, p.d, p.bf16, p.vector, row);
  const float inv = 1.0f / square_root(block_sum(s, 0, sum) / static_cast<float>(p.d) + p.eps);
  for (int c = begin; c < p.d; c += step) {
    const Float4 q = kept_quad(row, c);
    const int count = quad_count(c, p.d);
    float y[4], weight[4];
    load_quad(p.weight, c, 1, count, false, true, weight);
    LACUNA_UNROLL
    for (int e = 0; e < 4; ++e) y[e] = q.v[e] * inv * weight[e];
    if constexpr (kSummed) {
      rotate_summed(p, block_id(), c, y[0], y[1]);
      if (count > 2) rotate_summed(p, block_id(), c + 2, y[2], y[3]);
    } else if (p.head_dim > 0) {
      rotate(p, block_id(), c, y[0], y[1]);
      if (count > 2) rotate(p, block_id(), c + 2, y[2], y[3]);
    }
    store_quad(p.out, out_begin + c, 1, count, p.out_bf16, p.vector, y);
  }
}

// A warp per head of a row, which it reads twice (L1).
LACUNA_DEVICE void rms_norm_heads(const RmsNormArgs& p) {
  const int heads = p.d / p.span;
  const int64_t warp =
      static_cast<int64_t>(block_id()) * (kChannelThreads / 32) + (thread_id() >> 5);
  const auto row = static_cast<int>(warp / heads);
  if (row >= p.rows) return;
  const int first = static_cast<int>(warp - static_cast<int64_t>(row) * heads) * p.span;
  const int begin = (thread_id() & 31) * 4;
  const int64_t at = row * p.x_stride + first, out_at = row * p.out_stride + first;
  float y[4], weight[4], sum = 0.0f;
  for (int c = begin; c < p.span; c += 128) {
    load_quad(p.x, at + c, 1, quad_count(c, p.span), p.bf16, p.vector, y);
    sum += (y[0] * y[0] + y[1] * y[1]) + (y[2] * y[2] + y[3] * y[3]);
  }
  const float inv = 1.0f / square_root(warp_sum(sum) / static_cast<float>(p.span) + p.eps);
  for (int c = begin; c < p.span; c += 128) {
    const int count = quad_count(c, p.span);
    load_quad(p.x, at + c, 1, count, p.bf16, p.vector, y);
    load_quad(p.weight, c, 1, count, false, true, weight);
    LACUNA_UNROLL
    for (int e = 0; e < 4; ++e) y[e] = y[e] * inv * weight[e];
    if (p.summed) {
      rotate_summed(p, row, first + c, y[0], y[1]);
      if (count > 2) rotate_summed(p, row, first + c + 2, y[2], y[3]);
    } else if (p.head_dim > 0) {
      rotate(p, row, first + c, y[0], y[1]);
      if (count > 2) rotate(p, row, first + c + 2, y[2], y[3]);
    }
    store_quad(p.out, out_at + c, 1, count, p.out_bf16, p.vector, y);
  }
}

LACUNA_DEVICE void channel_norm(const ChannelNormArgs& p) {
  const int64_t row =
      static_cast<int64_t>(block_id()) * (kChannelThreads / 32) + (thread_id() >> 5);
  if (row >= p.rows) return;
  const int64_t at = row * p.c;
  const int begin = (thread_id() & 31) * 4;
  float v[4], gamma[4], sum = 0.0f;
  for (int c = begin; c < p.c; c += 128) {
    load_quad(p.x, at + c, 1, quad_count(c, p.c), p.bf16, p.vector, v);
    sum += (v[0] * v[0] + v[1] * v[1]) + (v[2] * v[2] + v[3] * v[3]);
  }
  const float norm = square_root(warp_sum(sum));
  const float factor = square_root(static_cast<float>(p.c)) / max_of(norm, 1e-12f);
  for (int c = begin; c < p.c; c += 128) {
    const int count = quad_count(c, p.c);
    load_quad(p.x, at + c, 1, count, p.bf16, p.vector, v);
    load_quad(p.gamma, c, 1, count, false, true, gamma);
    LACUNA_UNROLL
    for (int e = 0; e < 4; ++e) {
      const float y = v[e] * factor * gamma[e];
      v[e] = p.silu ? silu(y) : y;
    }
    store_quad(p.out, at + c, 1, count, p.bf16, p.vector, v);
  }
}

}  // namespace lacuna::cuda
