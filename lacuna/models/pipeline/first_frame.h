// SPDX-License-Identifier: Apache-2.0
// Image-to-video as Wan2.2 TI2V-5B does it: latent frame 0 is the encoded picture and stays so, its
// tokens are at timestep 0 in every step, and the network denoises the others behind it.
#pragma once

#include <optional>

#include "lacuna/core/tensor.h"
#include "lacuna/models/context.h"
#include "lacuna/models/pipeline/model.h"
#include "lacuna/models/pipeline/request.h"
#include "lacuna/models/video/picture.h"

namespace lacuna {

// The request's picture at the size of the video; nothing without one, nor for a run that goes on,
// whose latents hold it. Throws Error when the model takes none, when the file is no picture, and
// when it is there and not the one that the request knows by its content.
std::optional<Picture> picture_to_encode(const Model& model, const Request& request, bool resumed);
// The mode of the encoder's distribution, normalised: [channels, 1, height, width] f32. In f32
// whatever ctx.compute is, as upstream encodes: it is one frame, and every other looks at it. Holds
// VideoEncoder::memory_bytes().
Tensor encode_picture(Model& model, Context& ctx, const Picture& picture);
// Frame 0 of latents [channels, frames, height, width] f32, both ways; frame [channels, 1, height,
// width] f32.
Tensor first_frame_of(const TensorView& latents);
void put_first_frame(const TensorView& frame, const TensorView& latents);

}  // namespace lacuna
