// SPDX-License-Identifier: Apache-2.0
// Encoder of AutoencoderKLWan: Wan 2.1 and 2.2.
#pragma once

#include <optional>
#include <vector>

#include "lacuna/models/vae/blocks.h"
#include "lacuna/models/vae/vae_config.h"
#include "lacuna/models/vae/video_decoder.h"

namespace lacuna {

// Streams as upstream does: frame 0 alone, then groups of temporal_factor frames.
class WanEncoder : public VideoEncoder {
 public:
  // The source must outlive the encoder. Throws Error listing missing tensors.
  WanEncoder(VaeConfig config, WeightSource& source);
  WanEncoder(const WanEncoder&) = delete;  // layers are known to streams by address
  WanEncoder& operator=(const WanEncoder&) = delete;

  const VaeConfig& config() const { return config_; }
  Tensor encode_frames(Context& ctx, const VideoSize& size, const FrameSource& source,
                       const EncodeOptions& options = {}) const override;
  int64_t memory_bytes(const VideoSize& size, DType compute) const override;

 private:
  struct DownBlock {
    std::vector<ResBlock> resnets;
    std::optional<Downsample> down;
    int64_t factor_t = 1, factor_s = 1;
  };
  // frames [3, t, H, W] -> [t', h', w', 2 z_dim] in the stream's memory.
  TensorView pass(Context& ctx, Stream& stream, const TensorView& frames) const;
  int64_t most_frames(const VideoSize& size) const {  // of a pass
    return size.frames == 1 ? 1 : config_.temporal_factor();
  }
  static void add_on_host(Stream& stream, const TensorView& input, const DownBlock& block,
                          const TensorView& x);

  VaeConfig config_;
  CausalConv conv_in_, conv_out_;
  std::vector<DownBlock> blocks_;
  MidBlock mid_;
  Tensor norm_out_;
  Conv quant_;
};

}  // namespace lacuna
