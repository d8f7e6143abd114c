// SPDX-License-Identifier: Apache-2.0
// What the decoders share: one decode with its books (progress, memory), and tiles that are joined.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <span>

#include "lacuna/core/tensor.h"
#include "lacuna/models/vae/pixels.h"
#include "lacuna/models/vae/stream.h"
#include "lacuna/models/vae/tiling.h"
#include "lacuna/models/vae/video_decoder.h"

namespace lacuna {

struct DecodeRun {
  // Throws Error unless latents are [channels, T, h, w] f32 and the options can be met: a model
  // whose std_dev is empty has no statistics. Clears options.stats. All that is given must outlive
  // the run.
  DecodeRun(const TensorView& given, int64_t channels, std::span<const float> model_mean,
            std::span<const float> model_std, const DecodeOptions& how, const FrameSink& to);

  const TensorView& latents;
  const DecodeOptions& options;
  const FrameSink& sink;
  std::span<const float> mean, std_dev;  // empty: latents are decoded as they are
  int64_t total = 0, done = 0;           // latent frames, for progress
  int64_t assembly_bytes = 0;            // held outside streams

  int64_t frames() const { return latents.shape[1]; }
  Region whole() const { return {0, 0, latents.shape[2], latents.shape[3]}; }

  // Calls body(begin, end) for each pass over time of one stream, and keeps the books.
  template <typename Body>
  void passes(Stream& stream, bool counted, const Body& body) {
    for (int64_t begin = 0; begin < frames(); begin += options.frames_per_pass) {
      const int64_t end = std::min(frames(), begin + options.frames_per_pass);
      stream.begin_pass(/*last=*/end == frames());
      body(begin, end);
      stream.finish_pass();
      finish_pass(stream, counted ? end - begin : 0);
    }
  }
  // After a pass over `latent_frames` that count: memory, then progress.
  void finish_pass(const Stream& stream, int64_t latent_frames);

  // Memory that lives beside the streams.
  Tensor assembly(DType dtype, std::initializer_list<int64_t> shape,
                  Memory& memory = host_memory());
  void release(Tensor& tensor);  // of assembly()

  // Hands an assembled clip [T, h', w', 3 patch^2] f32 to the sink, a few frames at a time.
  void emit(const TensorView& raw, int64_t patch) const;
};

// Fills tile [t, part.height * scale, part.width * scale, c] f32 with the map of the latent cells
// `part`.
using TileDecoder = std::function<void(const Region& part, const TensorView& tile)>;

// Decodes the tiles of a blended decode row by row and cross-fades them into
// raw [t, h * scale, w * scale, c] f32 on the host, for the whole latent frame [h, w].
void blend_tiles(Backend& backend, DecodeRun& run, const BlendPlan& plan, int64_t scale,
                 const TileDecoder& decode_tile, const TensorView& raw);

}  // namespace lacuna
