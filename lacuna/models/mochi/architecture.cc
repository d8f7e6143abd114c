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

std::unique_ptr<VideoTransformer> MochiArchitecture::load(WeightReader& reader) const {
  return std::make_unique<MochiDit>(config_, reader);
}

}  // namespace lacuna
