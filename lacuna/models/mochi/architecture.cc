// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/mochi/dit.h"

namespace lacuna {

MochiArchitecture::MochiArchitecture(const MochiConfig& config) : config_(config) {
  config_.validate();
}

TransformerSizes MochiArchitecture::sizes() const {
  TransformerSizes sizes;
  sizes.num_layers = config_.num_layers;
  sizes.num_heads = config_.num_heads;
  sizes.head_dim = config_.head_dim;
  sizes.ffn_dim = config_.ffn_dim();
  sizes.latent_channels = config_.in_channels;
  sizes.patch = config_.patch_size();
  sizes.text_dim = config_.text_dim;
  sizes.text_len = config_.text_len;
  sizes.joint_text = true;
  sizes.reversed_time = true;
  return sizes;
}

VideoGrid MochiArchitecture::grid(int64_t frames, int64_t height, int64_t width) const {
  return config_.grid(frames, height, width);
}

int64_t MochiArchitecture::num_parameters() const {
  return config_.num_parameters();
}

ForwardFlops MochiArchitecture::flops(int64_t video_tokens, int64_t text_tokens) const {
  return config_.flops(video_tokens, text_tokens);
}

int64_t MochiArchitecture::activation_bytes(int64_t video_tokens, DType compute) const {
  return mochi_activation_bytes(config_, video_tokens, compute);
}

int64_t MochiArchitecture::prompt_bytes(DType) const {
  return mochi_prompt_bytes(config_);
}

PassingWeights MochiArchitecture::passing_weights(DType compute, double stored, bool lora) const {
  return mochi_passing_weights(config_, compute, stored, lora);
}

std::unique_ptr<VideoTransformer> MochiArchitecture::load(WeightReader& reader) const {
  return std::make_unique<MochiDit>(config_, reader);
}

}  // namespace lacuna
