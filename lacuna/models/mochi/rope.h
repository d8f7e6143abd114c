// SPDX-License-Identifier: Apache-2.0
// Rotary positions of the Mochi transformer, whose frequencies are learnt.
#pragma once

#include "lacuna/backend/backend.h"
#include "lacuna/core/tensor.h"
#include "lacuna/core/video_grid.h"
#include "lacuna/core/workspace.h"

namespace lacuna {

// frequencies [3, num_heads, head_dim / 2] f32: pair p of head h turns by the sum over the axes
// (frames, height, width) of position times frequency. A frame's position is its index; rows and
// columns lie at the centres of cells whose size makes the picture as large as 192 x 192, around 0.
// The tables lie in `workspace`, on the host. Angles are made in double and stored as f32.
RopeTables mochi_rope(const TensorView& frequencies, const VideoGrid& grid, Workspace& workspace);

}  // namespace lacuna
