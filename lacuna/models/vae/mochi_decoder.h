// SPDX-License-Identifier: Apache-2.0
// Decoder of AutoencoderKLMochi (Mochi 1).
//
// Streams over time as WanDecoder does: norms see one frame, convolutions see two frames back, so a
// pass computes one latent frame (or frames_per_pass) and memory does not grow with the clip. The
// first latent frame becomes temporal_factor() frames too, of which the last is frame 0 of the
// video; the others are computed, as what comes after depends on them, and dropped.
//
// Every norm of every level sees its whole frame, so there is no exact decode in tiles.
#pragma once

#include <span>
#include <vector>

#include "lacuna/models/vae/group_blocks.h"
#include "lacuna/models/vae/mochi_config.h"
#include "lacuna/models/vae/video_decoder.h"

namespace lacuna {

struct DecodeRun;

class MochiDecoder : public VideoDecoder {
 public:
  // Tensors stay where the source keeps them, except what makes one map of the next (f32, sorted).
  // The source must outlive the decoder. Throws Error listing missing tensors.
  MochiDecoder(MochiVaeConfig config, WeightSource& source);
  MochiDecoder(const MochiDecoder&) = delete;  // layers are known to streams by address
  MochiDecoder& operator=(const MochiDecoder&) = delete;

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
  struct UpBlock {
    std::vector<GroupResBlock> resnets;
    DepthToSpace up;
  };

  // All layers for latent frames [begin, end) of `region`: [frames, h', w', 3] before clamp, in the
  // stream's memory, without the frames that are dropped.
  TensorView layers(Context& ctx, Stream& stream, const DecodeRun& run, int64_t begin, int64_t end,
                    const Region& region) const;
  void decode_whole(Context& ctx, DecodeRun& run) const;
  void decode_blend(Context& ctx, DecodeRun& run) const;

  MochiVaeConfig config_;
  Conv conv_in_;
  std::vector<GroupResBlock> block_in_, block_out_;
  std::vector<UpBlock> up_blocks_;
  Linear proj_out_;
  std::vector<TensorView> weights_;
};

}  // namespace lacuna
