// SPDX-License-Identifier: Apache-2.0
// Image-to-video: from a request's pictures to what sampling begins with. Wan2.2 TI2V-5B has the
// first picture, encoded, as latent frame 0, whose tokens are at timestep 0 in every step. The
// other image-to-video networks of Wan see a condition in every step, in channels behind the
// latent's: a mask of the frames that are known, and the encoded video of these frames and grey
// ones. Those of Wan2.1 look at the rows that an image encoder makes of the pictures, too.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "lacuna/core/tensor.h"
#include "lacuna/models/context.h"
#include "lacuna/models/pipeline/model.h"
#include "lacuna/models/pipeline/request.h"
#include "lacuna/models/pipeline/sampling.h"
#include "lacuna/models/video/picture.h"

namespace lacuna {

// A request's pictures, the first and then the last.
struct RequestPictures {
  std::vector<Picture> covered;  // at the size of the video
  std::vector<Picture> whole;    // as read; empty where no image encoder looks at them

  bool empty() const { return covered.empty(); }
};

// Nothing without pictures, nor for a run that goes on, whose state holds what was made of them.
// Throws Error when the model takes no such pictures, or needs them and the request has none, when
// a file is no picture, and when it is there and not the one that the request knows by its content.
RequestPictures read_pictures(const Model& model, const Request& request, bool resumed);

// What sampling needs of them; which of it, says the model.
struct EncodedPictures {
  Tensor first_frame;  // [channels, 1, height, width] f32, normalised
  Tensor condition;    // [condition_channels, frames, height, width] f32
  Tensor image;        // [rows, image_dim] f32
};

// In f32 whatever ctx.compute is, as upstream encodes: every frame looks at what comes of it. Holds
// encoded_pictures_bytes(). `progress`, which may be null, counts frames of the video encoder,
// which takes minutes for a whole video. Empty without pictures.
EncodedPictures encode_pictures(Model& model, Context& ctx, const Request& request,
                                const RequestPictures& pictures,
                                const std::function<void(int64_t done, int64_t total)>& progress);
// At most, of video encoder and image encoder, weights aside.
int64_t encoded_pictures_bytes(Model& model, const Request& request);

// Where step 0 begins: the noise of the request's seed, and copies of what was encoded.
SamplingState first_state(const Request& request, const Model::LatentShape& latent,
                          const EncodedPictures& encoded);

// The mask of a condition [4, frames, height, width] f32, 1 where a frame of the video is known: of
// latent frame 0, which stands for one frame, all channels tell that one; channel j of latent frame
// i tells frame 4 i - 3 + j.
void fill_mask(bool last_known, const TensorView& mask);

// Frame 0 of latents [channels, frames, height, width] f32, both ways; frame [channels, 1, height,
// width] f32.
Tensor first_frame_of(const TensorView& latents);
void put_first_frame(const TensorView& frame, const TensorView& latents);

}  // namespace lacuna
