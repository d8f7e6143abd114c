// SPDX-License-Identifier: Apache-2.0
// Group norm: sums of chunks of rows, sums of chunks to coefficients, coefficients to values.
#pragma once

#include "lacuna/backend/cuda/network_args.h"
#include "lacuna/backend/cuda/quad.cuh"

namespace lacuna::cuda {

// Sums of a group or channel, in f64: their squares lose the digits of mean^2 / variance.
struct alignas(16) GroupSums {
  double value, square;
};
static_assert(sizeof(GroupSums) == kGroupSumsBytes);

// Up to kGroupRun rows, kGroupLoads at a time, `step` elements apart from `at` on: sums of the
// distances to the first of them are f32, which is exact enough for so few and as fast as memory;
// f64 is not on most GPUs.
LACUNA_DEVICE void add_run(const GroupNormArgs& p, int64_t at, int64_t step, int rows, int count,
                           GroupSums (&sums)[4]) {
  float first[4], value[4] = {}, square[4] = {};
  load_quad(p.x, at, 1, count, p.bf16, p.vector, first);
  LACUNA_NO_UNROLL
  for (int r = 0; r < rows; r += kGroupLoads) {
    float v[kGroupLoads][4];
    LACUNA_UNROLL
    for (int i = 0; i < kGroupLoads; ++i)
      load_quad(p.x, at + (r + i < rows ? r + i : r) * step, 1, count, p.bf16, p.vector, v[i]);
    LACUNA_UNROLL
    for (int i = 0; i < kGroupLoads; ++i) {
      if (r + i >= rows) continue;
      LACUNA_UNROLL
      for (int e = 0; e < 4; ++e) {
        const float distance = v[i][e] - first[e];
        value[e] += distance;
        square[e] += distance * distance;
      }
    }
  }
  LACUNA_UNROLL
  for (int e = 0; e < 4; ++e) {
    const double from = first[e], sum = value[e], all = static_cast<double>(rows) * from;
    sums[e].value += all + sum;
    sums[e].square += (all + 2.0 * sum) * from + static_cast<double>(square[e]);
  }
}

// A block per chunk of rows of one sample. Every `lanes`-th row of a quad of channels is one
// thread's; then a thread per group adds up its channels, lane by lane.
LACUNA_DEVICE void group_sums(const GroupNormArgs& p) {
  auto* shared = reinterpret_cast<GroupSums*>(shared_memory());  // [lanes][whole quads of channels]
  const int sample = block_id() / p.chunks, chunk = block_id() - sample * p.chunks;
  const int quads = (p.c + 3) / 4, step = p.lanes;
  const int64_t begin = static_cast<int64_t>(chunk) * p.chunk_rows;
  const int64_t left = p.m - begin;
  const int rows = left < p.chunk_rows ? static_cast<int>(left) : p.chunk_rows;
  LACUNA_NO_UNROLL
  for (int i = thread_id(); i < p.lanes * quads; i += kGroupThreads) {
    const int lane = i / quads, c = (i - lane * quads) * 4;
    GroupSums sums[4] = {};
    LACUNA_NO_UNROLL
    for (int r = lane; r < rows; r += step * kGroupRun)
      add_run(p, (sample * p.m + begin + r) * p.c + c, static_cast<int64_t>(step) * p.c,
              min_of(kGroupRun, (rows - r + step - 1) / step), quad_count(c, p.c), sums);
    LACUNA_UNROLL
    for (int e = 0; e < 4; ++e) shared[i * 4 + e] = sums[e];
  }
  sync_block();
  const int width = p.c / p.groups;
  LACUNA_NO_UNROLL
  for (int g = thread_id(); g < p.groups; g += kGroupThreads) {
    GroupSums all{0.0, 0.0};
    LACUNA_NO_UNROLL
    for (int lane = 0; lane < p.lanes; ++lane) LACUNA_NO_UNROLL
    for (int c = g * width; c < (g + 1) * width; ++c) {
      const GroupSums one = shared[lane * quads * 4 + c];
      all.value += one.value;
      all.square += one.square;
    }
    const int64_t group = static_cast<int64_t>(sample) * p.groups + g;
    write_global(static_cast<GroupSums*>(p.sums) + group * p.chunks + chunk, all);
  }
}

// A block per group of a sample: its chunks in a fixed tree, then (x - mean) * factor + offset of
// each of its channels. What the mean loses in f32 is in the offset.
LACUNA_DEVICE void group_coefficients(const GroupNormArgs& p) {
  auto* shared = reinterpret_cast<GroupSums*>(shared_memory());  // [kGroupThreads]
  const auto* sums = static_cast<const GroupSums*>(p.sums);
  GroupSums all{0.0, 0.0};
  LACUNA_NO_UNROLL
  for (int i = thread_id(); i < p.chunks; i += kGroupThreads) {
    const GroupSums one = read_global(sums + static_cast<int64_t>(block_id()) * p.chunks + i);
    all.value += one.value;
    all.square += one.square;
  }
  shared[thread_id()] = all;
  LACUNA_NO_UNROLL
  for (int half = kGroupThreads / 2; half > 0; half /= 2) {
    sync_block();
    if (thread_id() < half) {
      const GroupSums other = shared[thread_id() + half];
      all.value += other.value;
      all.square += other.square;
      shared[thread_id()] = all;
    }
  }
  sync_block();
  const int width = p.c / p.groups, sample = block_id() / p.groups;
  const int first = (block_id() - sample * p.groups) * width;
  const double count = static_cast<double>(p.m) * width;
  const double mean = shared[0].value / count;
  const double difference = shared[0].square / count - mean * mean;
  // Rounding may leave a constant group below 0; NaN stays.
  const auto variance = static_cast<float>(difference < 0.0 ? 0.0 : difference);
  const float inv = 1.0f / square_root(variance + p.eps);
  const auto rounded = static_cast<float>(mean);
  const auto rest = static_cast<float>(mean - static_cast<double>(rounded));
  float* out = p.coefficients + static_cast<int64_t>(sample) * 3 * p.c_stride;
  LACUNA_NO_UNROLL
  for (int c = first + thread_id(); c < first + width; c += kGroupThreads) {
    const float factor = inv * read_global(p.weight + c);
    write_global(out + c, rounded);
    write_global(out + p.c_stride + c, factor);
    write_global(out + 2 * p.c_stride + c, read_global(p.bias + c) - rest * factor);
  }
}

// The chunks of group_sums again; threads keep the coefficients of their channels.
LACUNA_DEVICE void group_apply(const GroupNormArgs& p) {
  const int sample = block_id() / p.chunks, chunk = block_id() - sample * p.chunks;
  const int quads = (p.c + 3) / 4;
  const int64_t begin = static_cast<int64_t>(chunk) * p.chunk_rows;
  const int64_t left = p.m - begin;
  const int rows = left < p.chunk_rows ? static_cast<int>(left) : p.chunk_rows;
  const float* from = p.coefficients + static_cast<int64_t>(sample) * 3 * p.c_stride;
  LACUNA_NO_UNROLL
  for (int i = thread_id(); i < p.lanes * quads; i += kGroupThreads) {
    const int lane = i / quads, c = (i - lane * quads) * 4, count = quad_count(c, p.c);
    float mean[4], factor[4], offset[4];
    load_quad(from, c, 1, count, false, true, mean);
    load_quad(from, p.c_stride + c, 1, count, false, true, factor);
    load_quad(from, 2 * p.c_stride + c, 1, count, false, true, offset);
    LACUNA_NO_UNROLL
    for (int r = lane; r < rows; r += p.lanes * kGroupLoads) {
      float v[kGroupLoads][4];
      LACUNA_UNROLL
      for (int j = 0; j < kGroupLoads; ++j)
        load_quad(p.x,
                  (sample * p.m + begin + (r + j * p.lanes < rows ? r + j * p.lanes : r)) * p.c + c,
                  1, count, p.bf16, p.vector, v[j]);
      LACUNA_UNROLL
      for (int j = 0; j < kGroupLoads; ++j) {
        if (r + j * p.lanes >= rows) continue;
        LACUNA_UNROLL
        for (int e = 0; e < 4; ++e) {
          const float y = (v[j][e] - mean[e]) * factor[e] + offset[e];
          v[j][e] = p.silu ? silu(y) : y;
        }
        store_quad(p.out, (sample * p.m + begin + r + j * p.lanes) * p.c + c, 1, count, p.bf16,
                   p.vector, v[j]);
      }
    }
  }
}

}  // namespace lacuna::cuda
