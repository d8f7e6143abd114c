// SPDX-License-Identifier: Apache-2.0
// Decoder of AutoencoderKLWan: Wan 2.1 (also A14B) and Wan 2.2 (TI2V-5B).
//
// Streams over time: a pass computes one latent frame (or frames_per_pass) through all layers; each
// causal convolution keeps its last two input frames in the compute dtype. That equals the
// convolution over the whole clip.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "lacuna/models/vae/blocks.h"
#include "lacuna/models/vae/vae_config.h"
#include "lacuna/models/vae/video_decoder.h"

namespace lacuna {

struct DecodeRun;

class WanDecoder : public VideoDecoder {
 public:
  // Tensors stay where the source keeps them, except the up-convolutions (f32, refolded). The
  // source must outlive the decoder. Throws Error listing missing tensors.
  WanDecoder(VaeConfig config, WeightSource& source);
  WanDecoder(const WanDecoder&) = delete;  // layers are known to streams by address
  WanDecoder& operator=(const WanDecoder&) = delete;

  const VaeConfig& config() const { return config_; }
  int64_t latent_channels() const override { return config_.z_dim; }
  int64_t spatial_factor() const override { return config_.spatial_factor(); }
  int64_t frames_out(int64_t latent_frames) const override {
    return config_.frames_out(latent_frames);
  }
  int64_t latent_frames(int64_t frames) const override { return config_.latent_frames(frames); }
  std::span<const TensorView> weights() const override { return weights_; }
  void decode(Context& ctx, const TensorView& latents, const DecodeOptions& options,
              const FrameSink& sink) const override;
  int64_t memory_bytes(int64_t latent_frames, int64_t latent_height, int64_t latent_width,
                       DType compute, const Tiling& tiling) const override;

 private:
  struct UpBlock {
    std::vector<ResBlock> resnets;
    std::optional<Upsample> up;
  };
  // Output of the layers at latent resolution, with the input of up block 0 where its shortcut
  // needs it.
  struct Trunk {
    Feature x, block_input;
  };

  // conv_in, middle and the resnets of up block 0 for latent frames [begin, end) of `region`.
  Trunk trunk(Context& ctx, Stream& stream, const DecodeRun& run, int64_t begin, int64_t end,
              const Region& region) const;
  // The rest. crops[b] is the part of up block b's doubled map to keep; empty = everything.
  // Result [t', h', w', pixel_channels] before clamp, in the stream's memory.
  TensorView head(Context& ctx, Stream& stream, const Trunk& trunk,
                  const std::vector<Region>& crops) const;

  void decode_whole(Context& ctx, DecodeRun& run) const;
  void decode_exact(Context& ctx, DecodeRun& run) const;
  void decode_blend(Context& ctx, DecodeRun& run) const;

  VaeConfig config_;
  std::vector<int64_t> dims_;  // config_.decoder_dims()
  Conv post_quant_;
  CausalConv conv_in_, conv_out_;
  MidBlock mid_;
  std::vector<UpBlock> blocks_;
  Tensor norm_out_;
  std::vector<TensorView> weights_;
};

}  // namespace lacuna
