// SPDX-License-Identifier: Apache-2.0
// Between latents [channels, frames, height, width] and one row per token. Some networks give the
// values of a patch in another order than they take them.
#pragma once

#include <cstdint>

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

// Inside a row of what a network gives: patchify's order, or frame, row and column of the patch and
// then the channel.
enum class PatchOrder : uint8_t { channel_slowest, channel_fastest };

// rows [tokens, c * volume] f32 contiguous -> latent [c, t, h, w] f32 contiguous.
void unpatchify(const TensorView& rows, const PatchSize& patch, PatchOrder order,
                const TensorView& latent);

}  // namespace lacuna
