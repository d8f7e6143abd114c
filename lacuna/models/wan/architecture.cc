// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/wan/dit.h"
#include "lacuna/models/wan/wan_config.h"

namespace lacuna {

WanArchitecture::WanArchitecture(const WanConfig& config) : config_(config) {
  config_.validate();
}

TransformerSizes WanArchitecture::sizes() const {
  TransformerSizes sizes;
  sizes.num_layers = config_.num_layers;
  sizes.num_heads = config_.num_heads;
  sizes.head_dim = config_.head_dim;
  sizes.ffn_dim = config_.ffn_dim;
  sizes.latent_channels = config_.out_channels;
  sizes.condition_channels = config_.condition_channels();
  sizes.image_dim = config_.image_dim;
  sizes.image_rows = config_.image_positions;
  sizes.patch = {config_.patch_t, config_.patch_h, config_.patch_w};
  sizes.text_dim = config_.text_dim;
  sizes.text_len = config_.text_len;
  sizes.shares_tokens = true;
  return sizes;
}

VideoGrid WanArchitecture::grid(int64_t frames, int64_t height, int64_t width) const {
  return config_.grid(frames, height, width);
}

int64_t WanArchitecture::num_parameters() const {
  return config_.num_parameters();
}

ForwardFlops WanArchitecture::flops(int64_t video_tokens, int64_t text_tokens) const {
  return config_.flops(video_tokens, text_tokens);
}

int64_t WanArchitecture::activation_bytes(int64_t video_tokens, DType compute) const {
  return lacuna::activation_bytes(config_, video_tokens, compute);
}

int64_t WanArchitecture::prompt_bytes(DType compute) const {
  return text_bytes(config_, compute);
}

PassingWeights WanArchitecture::passing_weights(DType compute, double stored, bool lora) const {
  return lacuna::passing_weights(config_, compute, stored, lora);
}

std::unique_ptr<VideoTransformer> WanArchitecture::load(WeightReader& reader) const {
  return std::make_unique<WanDit>(config_, reader);
}

}  // namespace lacuna
