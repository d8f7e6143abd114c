// SPDX-License-Identifier: Apache-2.0
// Decoder of AutoencoderKLHunyuanVideo (HunyuanVideo 1.0).
//
// Norms see every position of every frame they are given and the middle attention all frames so
// far, so what a decode is depends on how many frames go in together. What diffusers does by
// default is the definition: clips of more than 4 latent frames are decoded in pieces of 5, every
// 3, and cross-faded over 4 frames. TileMode::blend is diffusers with enable_tiling(), which
// decodes every piece in tiles. A piece is one pass, so frames_per_pass has no say.
//
// Since norms see all of a piece, there is no exact decode in tiles.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "lacuna/models/vae/group_blocks.h"
#include "lacuna/models/vae/hunyuan_config.h"
#include "lacuna/models/vae/tiling.h"
#include "lacuna/models/vae/video_decoder.h"

namespace lacuna {

struct DecodeRun;

class HunyuanDecoder : public VideoDecoder {
 public:
  // Tensors stay where the source keeps them, except the up-convolutions (f32, refolded). The
  // source must outlive the decoder. Throws Error listing missing tensors.
  HunyuanDecoder(HunyuanVaeConfig config, WeightSource& source);
  HunyuanDecoder(const HunyuanDecoder&) = delete;  // layers are known to streams by address
  HunyuanDecoder& operator=(const HunyuanDecoder&) = delete;

  int64_t latent_channels() const override { return config_.latent_channels; }
  int64_t spatial_factor() const override { return HunyuanVaeConfig::kSpatialFactor; }
  int64_t frames_out(int64_t latent_frames) const override;
  int64_t latent_frames(int64_t frames) const override;
  std::span<const TensorView> weights() const override { return weights_; }
  void decode(Context& ctx, const TensorView& latents, const DecodeOptions& options,
              const FrameSink& sink) const override;
  bool takes_exact_tiles() const override { return false; }
  int64_t memory_bytes(int64_t latent_frames, int64_t latent_height, int64_t latent_width,
                       DType compute, const Tiling& tiling) const override;

 private:
  struct UpBlock {
    std::vector<GroupResBlock> resnets;
    std::optional<ReplicateUpsample> up;
  };

  // All layers for the latent frames of `piece` in `region`, one pass of a stream of its own, into
  // clip [frames, h', w', 3] f32, before clamp.
  void decode_piece(Context& ctx, DecodeRun& run, Span piece, const Region& region,
                    const TensorView& clip) const;
  TensorView layers(Context& ctx, Stream& stream, const DecodeRun& run, Span piece,
                    const Region& region) const;
  // What layers() asks a stream for.
  MemoryTally count(int64_t latent_frames, int64_t height, int64_t width) const;

  HunyuanVaeConfig config_;
  std::vector<float> std_dev_;  // per latent channel
  Conv post_quant_;
  ReplicateConv conv_in_, conv_out_;
  GroupResBlock mid_before_, mid_after_;
  std::optional<FrameCausalAttention> mid_attention_;
  std::vector<UpBlock> up_blocks_;
  GroupNorm norm_out_;
  std::vector<TensorView> weights_;
};

// The pieces of a clip, in latent frames; those of later pieces before their last are also in the
// next one.
std::vector<Span> hunyuan_pieces(int64_t latent_frames);

}  // namespace lacuna
