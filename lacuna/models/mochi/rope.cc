// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/mochi/rope.h"

#include <cmath>

#include "lacuna/core/error.h"
#include "lacuna/core/threads.h"

namespace lacuna {
namespace {

constexpr double kMochiArea = 192.0 * 192.0;

// Positions first, first + step, ... of one axis: [count, values] cosines, then as many sines.
void fill_axis(const float* frequencies, int64_t values, double first, double step, int64_t count,
               float* cos, float* sin) {
  parallel_ranges(count, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const double position = first + step * static_cast<double>(i);
      for (int64_t j = 0; j < values; ++j) {
        const double angle = position * frequencies[j];
        cos[i * values + j] = static_cast<float>(std::cos(angle));
        sin[i * values + j] = static_cast<float>(std::sin(angle));
      }
    }
  });
}

}  // namespace

RopeTables mochi_rope(const TensorView& frequencies, const VideoGrid& grid, Workspace& workspace) {
  LACUNA_CHECK(frequencies.rank == 3 && frequencies.shape[0] == 3 && frequencies.contiguous(),
               "mochi rope: frequencies {}, expected [3, heads, pairs]", frequencies.describe());
  const int64_t values = frequencies.shape[1] * frequencies.shape[2];
  const int64_t positions = grid.frames + grid.height + grid.width;
  float* at = workspace.host("mochi.rope", DType::f32, {2, positions, values}).as<float>();
  const double cell = std::sqrt(kMochiArea / static_cast<double>(grid.tokens_per_frame()));
  const float* axis = frequencies.as<float>();
  const auto add = [&](int64_t count, double first, double step, const float*& cos,
                       const float*& sin) {
    float* const sines = at + count * values;
    fill_axis(axis, values, first, step, count, at, sines);
    cos = at;
    sin = sines;
    at = sines + count * values;
    axis += values;
  };
  const auto centred = [&](int64_t count) { return -0.5 * cell * static_cast<double>(count - 1); };

  RopeTables tables;
  tables.summed = true;
  tables.frames = grid.frames;
  tables.height = grid.height;
  tables.width = grid.width;
  tables.pairs_frames = tables.pairs_height = tables.pairs_width =
      static_cast<int32_t>(frequencies.shape[2]);
  add(grid.frames, 0.0, 1.0, tables.cos_frames, tables.sin_frames);
  add(grid.height, centred(grid.height), cell, tables.cos_height, tables.sin_height);
  add(grid.width, centred(grid.width), cell, tables.cos_width, tables.sin_width);
  return tables;
}

}  // namespace lacuna
