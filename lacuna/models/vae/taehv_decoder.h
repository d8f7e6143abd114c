// SPDX-License-Identifier: Apache-2.0
// Decoder of a TAEHV, the tiny autoencoder that stands in for a full one: convolutions of single
// frames, of which some also see the frame before, and ReLU.
//
// Streams over time as WanDecoder does: a pass computes one latent frame (or frames_per_pass) and
// keeps one frame per convolution that looks back. The first latent frame becomes temporal_factor()
// frames too, of which the last is frame 0 of the video.
//
// Latents are taken as transformers have them, whatever DecodeOptions::denormalize says. A video
// that is decoded in tiles exactly would compute most of each tile twice or more, to save little
// memory: TileMode::exact is refused.
#pragma once

#include <array>
#include <functional>
#include <span>
#include <vector>

#include "lacuna/models/vae/blocks.h"
#include "lacuna/models/vae/memory_tally.h"
#include "lacuna/models/vae/taehv_config.h"
#include "lacuna/models/vae/video_decoder.h"

namespace lacuna {

struct DecodeRun;

class TaehvDecoder : public VideoDecoder {
 public:
  // Tensors stay where the source keeps them, except what is rearranged (f32): of each block the
  // first convolution, and what makes one map of the next. The source must outlive the decoder.
  // Throws Error listing missing tensors.
  TaehvDecoder(const TaehvConfig& config, WeightSource& source);
  TaehvDecoder(const TaehvDecoder&) = delete;  // layers are known to streams by address
  TaehvDecoder& operator=(const TaehvDecoder&) = delete;

  const TaehvConfig& config() const { return config_; }
  int64_t latent_channels() const override { return config_.latent_channels; }
  int64_t spatial_factor() const override { return config_.spatial_factor(); }
  int64_t frames_out(int64_t latent_frames) const override;
  int64_t latent_frames(int64_t frames) const override;
  std::span<const TensorView> weights() const override { return weights_; }
  void decode(Context& ctx, const TensorView& latents, const DecodeOptions& options,
              const FrameSink& sink) const override;
  bool takes_exact_tiles() const override { return false; }
  int64_t memory_bytes(int64_t latent_frames, int64_t latent_height, int64_t latent_width,
                       DType compute, const Tiling& tiling) const override;

 private:
  // relu(x + conv3(relu(conv2(relu(conv1(x, the frame before x)))))). Upstream stacks the two
  // frames as channels; as taps in time they are a convolution with memory.
  struct MemBlock {
    Tensor taps;  // of conv1
    CausalConv conv1;
    Conv conv2, conv3;

    Feature forward(Context& ctx, Stream& stream, const Feature& x) const;
  };

  // Doubles height and width (nearest), makes `frames` frames of one by a matrix over channels,
  // then a 3x3 convolution. The two are linear without anything between, so they are one
  // convolution per frame; and that on a doubled map is four 2x2 ones on the small map, of 4/9 of
  // the multiplications (Upsample). Equal to the plain form up to summation order.
  struct Grow {
    int64_t frames = 1;
    bool relu = false;
    std::vector<Tensor> phases;  // [c_out, c, 1, 2, 2] f32, (frame * 2 + row) * 2 + column parity

    int64_t channels() const { return phases[0].view().shape[0]; }
    // x [t, h, w, c] -> the frames of x that are `frame` of theirs, out [t, 2h, 2w, channels()],
    // whose frames may lie apart.
    void forward(Context& ctx, Stream& stream, const TensorView& x, int64_t frame,
                 const TensorView& out) const;
  };

  struct Level {
    std::array<MemBlock, 3> blocks;
    Grow grow;
  };

  static MemBlock load_block(WeightReader& reader, const std::string& name, int64_t c);
  static Grow load_grow(WeightReader& reader, int64_t layer, int64_t c_out, int64_t c,
                        int64_t frames);
  static Conv load_out(WeightReader& reader, int64_t c, int64_t patch, Tensor& weight);

  // Called with each frame of a pass that is not dropped, in order: raw [1, h, w, 3 patch^2] in the
  // stream's memory, before clamp.
  using FrameBody = std::function<void(const TensorView& raw)>;
  void layers(Context& ctx, Stream& stream, DecodeRun& run, int64_t begin, int64_t end,
              const Region& region, const FrameBody& body) const;
  void decode_whole(Context& ctx, DecodeRun& run) const;
  void decode_blend(Context& ctx, DecodeRun& run) const;
  // Throws Error on tiles that this decoder does not have; else whether a frame is not tiled.
  bool whole_frames(const Tiling& tiling, int64_t latent_height, int64_t latent_width) const;

  TaehvConfig config_;
  Conv conv_in_;
  std::array<Level, 3> levels_;
  Tensor out_weight_;  // of conv_out_
  Conv conv_out_;
  std::vector<TensorView> weights_;
};

}  // namespace lacuna
