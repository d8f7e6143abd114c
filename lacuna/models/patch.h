// SPDX-License-Identifier: Apache-2.0
// Between latents [channels, frames, height, width] and one row per token. The two directions order
// the values of a patch differently.
#pragma once

#include "lacuna/core/tensor.h"
#include "lacuna/core/video_grid.h"

namespace lacuna {

struct PatchSize {
  int64_t t = 1, h = 2, w = 2;
  int64_t volume() const { return t * h * w; }
};

// latent [c, t, h, w] f32 contiguous -> rows [tokens, c * volume] f32 contiguous; inside a row the
// channel is slowest, then frame, row and column of the patch.
void patchify(const TensorView& latent, const PatchSize& patch, const TensorView& rows);

// rows [tokens, volume * c] f32 contiguous -> latent [c, t, h, w] f32 contiguous; inside a row
// the channel is FASTEST.
void unpatchify(const TensorView& rows, const PatchSize& patch, const TensorView& latent);

}  // namespace lacuna
