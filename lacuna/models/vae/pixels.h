// SPDX-License-Identifier: Apache-2.0
// Memory movement of the VAEs: layouts, crops, sub-pixel interleaving. All tensors are contiguous
// and, but for what takes a backend, on the host; channels-last ones are [t, h, w, c] f32 or bf16.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "lacuna/backend/backend.h"
#include "lacuna/core/tensor.h"

namespace lacuna {

// Rows [top, top + height) and columns [left, left + width) of a frame.
struct Region {
  int64_t top = 0, left = 0, height = 0, width = 0;
};

// latents [C, T, H, W] f32 -> out [t, region, C] for frames [t_begin, t_begin + t); per channel
// z * std + mean when the spans are not empty.
void unpack_latents(const TensorView& latents, int64_t t_begin, const Region& region,
                    std::span<const float> mean, std::span<const float> std_dev,
                    const TensorView& out);
// Inverse for the first C of x's channels: x [t, h, w, >= C] -> latents [C, T, h, w] f32 at
// t_begin; per channel (z - mean) / std when the spans are not empty.
void pack_latents(const TensorView& x, std::span<const float> mean, std::span<const float> std_dev,
                  int64_t t_begin, const TensorView& latents);

// The region of x [t, h, w, c].
TensorView region_of(const TensorView& x, const Region& region);
// video [T, H, W, c] f32 at (t_begin, top, left) = the region of x [t, h, w, c], f32 or bf16.
void paste_region(Backend& backend, const TensorView& x, const Region& region, int64_t t_begin,
                  int64_t top, int64_t left, const TensorView& video);

// The channels that the Wan 2.2 up-block shortcut DupUp3D adds to one phase: output channel c takes
// channel offset[a] + (c / repeats) * step for frame offset a.
struct DupChannels {
  std::vector<int64_t> offset;  // [factor_t]; empty without a shortcut
  int64_t repeats = 1, step = 1;
};

// The shortcut of one phase: output frame f reads frame (f + skip) / factor_t of x with frame
// offset (f + skip) % factor_t.
struct DupShortcut {
  TensorView x;  // [t_in, h, w, c_in]
  const DupChannels* channels = nullptr;
  int64_t skip = 0;
};

// One of the four phases of a x2 upsampled map: out[f, 2y + dy - top, 2x + dx - left] =
// phase[f, y, x] (+ shortcut) where that lies inside the region [height, width] of the upsampled
// map. phase [t, h, w, c], out [t, region, c], same dtype.
void interleave_phase(Backend& backend, const TensorView& phase, int dy, int dx,
                      const Region& region, const DupShortcut* shortcut, const TensorView& out);

// raw [t, h, w, 3 p^2] f32|bf16 -> frames [t, h p, w p, 3] f32, clamped to [-1, 1]. Channel index
// is c p^2 + wo p + ho: the column offset is the slower one.
void unpatchify(const TensorView& raw, int64_t patch, const TensorView& frames);
// video [3, F, H, W] f32, frames [f_begin, f_begin + t) -> out [t, H/p, W/p, 3 p^2].
void patchify(const TensorView& video, int64_t f_begin, int64_t patch, const TensorView& out);

// out += AvgDown3D(x), the Wan 2.2 down-block shortcut: (frame, row, column) offsets inside a
// factor_t x factor_s x factor_s cell are folded into channels (frame slowest), then runs of
// c_in * factor / c_out channels are averaged. x [t, h, w, c_in], out [t', h/fs, w/fs, c_out]; when
// t is not a multiple of factor_t, zero frames are put in front. Same dtype.
void add_average_shortcut(const TensorView& x, int64_t factor_t, int64_t factor_s,
                          const TensorView& out);

}  // namespace lacuna
