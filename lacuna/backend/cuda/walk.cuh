// SPDX-License-Identifier: Apache-2.0
// Elementwise kernels over strided views, and the patches of a convolution.
#pragma once

#include "lacuna/backend/cuda/network_args.h"
#include "lacuna/backend/cuda/quad.cuh"

namespace lacuna::cuda {

// Where a thread's group lies in each view, and how many elements it has; 0 = nothing to do.
struct Group {
  int64_t at[kWalkViews];
  int64_t stride[kWalkViews];
  int count;
};

template <int kViews>
LACUNA_DEVICE Group find_group(const Walk& w) {
  Group g;
  g.count = 0;
  const auto index =
      static_cast<uint32_t>(block_id()) * kWalkThreads + static_cast<uint32_t>(thread_id());
  if (index >= w.total) return g;
  const int last = w.rank - 1;
  uint32_t row = index / w.groups;
  const uint32_t first = (index - row * w.groups) * static_cast<uint32_t>(w.group);
  uint32_t size = 0;
  LACUNA_UNROLL
  for (int v = 0; v < kViews; ++v) g.at[v] = 0;
  // Unrolled with conditions: arguments indexed by a variable would go to local memory.
  LACUNA_UNROLL
  for (int i = kWalkRank - 1; i >= 0; --i) {
    if (i > last) continue;
    uint32_t place = first;
    if (i == last) {
      size = w.shape[i];
      LACUNA_UNROLL
      for (int v = 0; v < kViews; ++v) g.stride[v] = w.stride[v][i];
    } else {
      const uint32_t rest = row / w.shape[i];
      place = row - rest * w.shape[i];
      row = rest;
    }
    LACUNA_UNROLL
    for (int v = 0; v < kViews; ++v) g.at[v] += place * w.stride[v][i];
  }
  const uint32_t left = size - first;
  g.count = left < static_cast<uint32_t>(w.group) ? static_cast<int>(left) : w.group;
  return g;
}

struct alignas(16) Bytes16 {
  uint32_t v[4];
};

// One unit of 1 to 16 bytes per thread.
template <class Unit>
LACUNA_DEVICE void move(const CopyArgs& p) {
  const Group g = find_group<2>(p.walk);
  if (g.count > 0)
    write_global(static_cast<Unit*>(p.to) + g.at[1],
                 read_global(static_cast<const Unit*>(p.from) + g.at[0]));
}

// Four elements per thread, f32 to bf16 or back.
template <bool kToBf16>
LACUNA_DEVICE void convert(const CopyArgs& p) {
  const Group g = find_group<2>(p.walk);
  if (g.count == 0) return;
  float v[4];
  load_quad(p.from, g.at[0], g.stride[0], g.count, !kToBf16, p.vector, v);
  store_quad(p.to, g.at[1], g.stride[1], g.count, kToBf16, p.vector, v);
}

enum class Pair { gelu_mul, silu_mul, add };

// Four elements per thread.
template <Pair kPair>
LACUNA_DEVICE void pairwise(const PairArgs& p) {
  const Group g = find_group<3>(p.walk);
  if (g.count == 0) return;
  float a[4], b[4];
  load_quad(p.a, g.at[0], g.stride[0], g.count, p.bf16, p.vector, a);
  load_quad(p.b, g.at[1], g.stride[1], g.count, p.bf16, p.vector, b);
  LACUNA_UNROLL
  for (int e = 0; e < 4; ++e)
    if constexpr (kPair == Pair::gelu_mul) {
      b[e] *= gelu_tanh(a[e]);
    } else if constexpr (kPair == Pair::silu_mul) {
      b[e] *= silu(a[e]);
    } else {
      b[e] += a[e];
    }
  store_quad(p.out, g.at[2], g.stride[2], g.count, p.bf16, p.vector, b);
}

// One unit of a patch per thread.
template <class Unit>
LACUNA_DEVICE void patches(const PatchArgs& p) {
  const auto index =
      static_cast<uint32_t>(block_id()) * kWalkThreads + static_cast<uint32_t>(thread_id());
  const auto row = static_cast<uint32_t>(p.row);
  const uint32_t position = index / row;
  if (position >= static_cast<uint32_t>(p.positions)) return;
  const auto column = static_cast<int>(index - position * row);
  const int tap = column / p.c, channel = column - tap * p.c;
  const int64_t at = p.first + position;
  const int plane = p.out_h * p.out_w;
  const auto t = static_cast<int>(at / plane);
  const auto inside = static_cast<int>(at - static_cast<int64_t>(t) * plane);
  const int y = inside / p.out_w, z = inside - y * p.out_w;
  const int a = tap / (p.kh * p.kw), b = tap / p.kw % p.kh, c = tap % p.kw;
  const int iy = y * p.stride_h + b - p.pad_top, iz = z * p.stride_w + c - p.pad_left;
  Unit unit{};
  if (a < p.kt && iy >= 0 && iy < p.h && iz >= 0 && iz < p.w) {
    const int64_t pixel = (static_cast<int64_t>(t) * p.stride_t + a) * p.h + iy;
    unit = read_global(static_cast<const Unit*>(p.x) + (pixel * p.w + iz) * p.c + channel);
  }
  write_global(static_cast<Unit*>(p.out) + static_cast<int64_t>(position) * row + column, unit);
}

}  // namespace lacuna::cuda
