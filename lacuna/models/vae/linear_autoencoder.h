// SPDX-License-Identifier: Apache-2.0
// Patches of pixels on a fixed linear basis: the autoencoder of the small default model.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "lacuna/core/tensor.h"
#include "lacuna/models/vae/video_decoder.h"

namespace lacuna {

// Keys of vae/config.json (`_class_name` LinearVideoAutoencoder).
struct LinearConfig {
  int64_t patch_size = 8;  // pixels per side; a patch has 3 patch_size^2 values, (c, y, x) order
  int64_t latent_channels = 32;  // components
};

LinearConfig parse_linear_config(std::string_view json_text, std::string_view where);

// Tensors mean [values], basis [components, values] with orthonormal rows, scale [components]:
//   latent z_k = basis_k . (patch - mean) / scale_k,   patch = mean + sum_k z_k scale_k basis_k.
// Each frame is coded on its own, so latent frames and frames are the same. Computes in f32
// whatever ctx.compute is: the work is one small matrix product. Latents need no further
// statistics: `denormalize` and `normalize` have no effect, and tiling changes nothing but is
// accepted.
class LinearVideoAutoencoder : public VideoDecoder, public VideoEncoder {
 public:
  // Throws Error on missing tensors, values that are not finite or a scale that is not positive.
  LinearVideoAutoencoder(LinearConfig config, WeightSource& source);

  int64_t latent_channels() const override { return config_.latent_channels; }
  int64_t spatial_factor() const override { return config_.patch_size; }
  int64_t frames_out(int64_t latent_frames) const override { return latent_frames; }
  int64_t latent_frames(int64_t frames) const override;
  std::span<const TensorView> weights() const override { return weights_; }
  void decode(Context& ctx, const TensorView& latents, const DecodeOptions& options,
              const FrameSink& sink) const override;
  int64_t memory_bytes(int64_t latent_frames, int64_t latent_height, int64_t latent_width,
                       DType compute, const Tiling& tiling) const override;
  Tensor encode_frames(Context& ctx, const VideoSize& size, const FrameSource& source,
                       const EncodeOptions& options = {}) const override;
  int64_t memory_bytes(const VideoSize& size, DType compute) const override;

 private:
  LinearConfig config_;
  Tensor mean_;         // [values]
  Tensor decode_;       // [values, components] = scale_k basis_k transposed
  Tensor encode_;       // [components, values] = basis_k / scale_k
  Tensor encode_bias_;  // [components] = -basis_k . mean / scale_k
  std::vector<TensorView> weights_;
};

}  // namespace lacuna
