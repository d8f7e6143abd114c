// SPDX-License-Identifier: Apache-2.0
// Tensor names of the Wan VAEs: diffusers (the model side of this code) and original.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "lacuna/models/vae/vae_config.h"
#include "lacuna/models/weights.h"

namespace lacuna {

// The name that the original Wan release (and ComfyUI's files) uses for a diffusers tensor name:
// decoder.up_blocks.1.resnets.0.conv1.weight -> decoder.upsamples.4.residual.2.weight (2.1) or
// decoder.upsamples.1.upsamples.0.residual.2.weight (2.2). A name that is not
// a VAE tensor comes back unchanged.
std::string original_vae_name(const VaeConfig& config, std::string_view diffusers_name);

// Diffusers -> source names for a WeightReader: empty (identity) unless the source has only
// original names. Sources that know every name (the hash) count as diffusers.
std::function<std::string(std::string_view)> vae_name_map(const WeightSource& source,
                                                          const VaeConfig& config);

}  // namespace lacuna
