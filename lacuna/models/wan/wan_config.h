// SPDX-License-Identifier: Apache-2.0
// Sizes of a Wan diffusion transformer, where they come from, and what they cost.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "lacuna/core/tensor.h"
#include "lacuna/core/video_grid.h"
#include "lacuna/models/rope.h"
#include "lacuna/models/transformer.h"
#include "lacuna/models/weights.h"

namespace lacuna {

struct WanConfig {
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t head_dim = 128;
  int64_t in_channels = 16;
  int64_t out_channels = 16;
  int64_t ffn_dim = 0;
  int64_t text_dim = 4096;
  int64_t text_len = 512;  // context rows the model was trained with, padding included
  int64_t freq_dim = 256;
  int64_t patch_t = 1, patch_h = 2, patch_w = 2;
  int64_t rope_max_positions = 1024;  // per grid axis
  double rope_theta = 10000.0;
  float eps = 1e-6f;
  bool cross_attn_norm = true;
  // Image-to-video: rows of an image encoder have their own keys and values in cross-attention.
  int64_t image_dim = 0;        // width of such a row; 0 = none
  int64_t image_positions = 0;  // rows with a learnt position, of two pictures; 0 = none learnt

  int64_t dim() const { return num_heads * head_dim; }
  int64_t patch_volume() const { return patch_t * patch_h * patch_w; }
  int64_t patch_inputs() const { return in_channels * patch_volume(); }
  // Channels behind those of the latent: mask and encoded pictures. 0 of text-to-video.
  int64_t condition_channels() const { return in_channels - out_channels; }
  int64_t patch_outputs() const { return out_channels * patch_volume(); }
  // Height and width get 2 * (head_dim / 6) each, frames the rest (128 -> 44, 42, 42).
  RopeChannels rope_channels() const {
    const int64_t side = 2 * (head_dim / 6);
    return {head_dim - 2 * side, side, side};
  }

  // Throws Error naming field, value and allowed range. A valid config cannot overflow int64 in any
  // product of its sizes with up to 2^30 tokens.
  void validate() const;
  // Token grid of a latent [in_channels, frames, height, width]; throws Error unless the patch
  // divides it and every axis fits rope_max_positions.
  VideoGrid grid(int64_t frames, int64_t height, int64_t width) const;

  bool operator==(const WanConfig&) const = default;

  int64_t num_parameters() const;
  int64_t num_tensors() const;
  // text_tokens: keys of cross-attention that are really computed. With N tokens: 4 N^2 d L,
  // 4 N text d L, and 2 N L (6 d^2 + 2 d f) + text keys and values.
  ForwardFlops flops(int64_t tokens, int64_t text_tokens) const;
};

// "wan2.1-1.3b", "wan2.1-14b", "wan2.2-a14b" (each of its two experts), "wan2.2-ti2v-5b",
// "wan2.1-i2v-14b", "wan2.1-flf2v-14b", "wan2.2-i2v-a14b", and "tiny" and "tiny-i2v", which exist
// for demonstrations with made-up weights. Throws Error listing the names.
WanConfig wan_preset(std::string_view name);
std::span<const std::string_view> wan_preset_names();

// From the text of a config.json, diffusers (`num_attention_heads`, ...) or original (`dim`, ...).
// The text is hostile: `who` (a file name) starts every message. Refuses by name what this
// port does not compute: control channels, VACE, control adapters, local windows, other q/k norms.
// Original configs do not say whether there are image keys: see read_image_sizes().
WanConfig wan_config_from_json(std::string_view json, std::string_view who);

// image_dim and image_positions as the tensors have them. Throws Error where `config` says them and
// says others. `rename` as in infer_wan_config().
void read_image_sizes(const WeightSource& source,
                      const std::function<std::string(std::string_view)>& rename,
                      std::string_view who, WanConfig& config);

// From tensor shapes alone, for single-file checkpoints without config.json. Shapes do not tell the
// number of heads: every released model has head_dim 128, so d must be a multiple of it. The patch
// embedding may be stored as GGML's four dimensions allow, [d * in, 1, h, w].
// `rename` maps diffusers names to names in the source (names.h).
WanConfig infer_wan_config(const WeightSource& source,
                           const std::function<std::string(std::string_view)>& rename);

// Bytes of scratch that one forward takes from Context::workspace:
//   N d (4 + 4 e) + 4 N max(patch inputs, patch outputs) + max(r f e, 4 r d) + modulation
// with e bytes per element of `compute` and r = rows_at_once(N). Weights that are stored in
// another dtype than `compute` take (2 d f + d max(d, text_dim)) e more.
int64_t activation_bytes(const WanConfig& config, int64_t tokens, DType compute);

// Bytes of the prepared keys and values of one prompt: 2 layers (text_len + image rows) d e.
int64_t text_bytes(const WanConfig& config, DType compute);

// `stored` bytes a parameter; see activation_bytes for what is converted.
PassingWeights passing_weights(const WanConfig& config, DType compute, double stored, bool lora);

// A Wan network to pipelines.
class WanArchitecture final : public Architecture {
 public:
  // Throws Error on a config that is not valid.
  explicit WanArchitecture(const WanConfig& config);
  const WanConfig& config() const { return config_; }
  std::string_view family() const override { return "wan"; }
  TransformerSizes sizes() const override;
  VideoGrid grid(int64_t frames, int64_t height, int64_t width) const override;
  int64_t num_parameters() const override;
  ForwardFlops flops(int64_t video_tokens, int64_t text_tokens) const override;
  int64_t activation_bytes(int64_t video_tokens, DType compute) const override;
  int64_t prompt_bytes(DType compute) const override;
  PassingWeights passing_weights(DType compute, double stored, bool lora) const override;
  std::unique_ptr<VideoTransformer> load(WeightReader& reader) const override;

 private:
  WanConfig config_;
};

// Of a mask one channel for each frame of the video that a latent frame stands for.
inline constexpr int64_t kMaskChannels = 4;

// Rows of one picture, as ViT-H gives them; what is computed takes any number.
inline constexpr int64_t kUsualImageRows = 257;

// Distinct timesteps that one forward may mix (TI2V: first frame, others).
inline constexpr int64_t kMaxTokenTimes = 16;

}  // namespace lacuna
