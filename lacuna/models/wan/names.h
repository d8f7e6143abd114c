// SPDX-License-Identifier: Apache-2.0
// The two naming schemes of Wan checkpoints. This library asks for diffusers names; original
// files (also ComfyUI and GGUF) use the other one.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "lacuna/models/wan/wan_config.h"
#include "lacuna/models/weights.h"

namespace lacuna {

enum class WanNaming : uint8_t { diffusers, original };

struct WanNames {
  WanNaming naming = WanNaming::diffusers;
  std::string prefix;  // "", "model.diffusion_model.", "diffusion_model." or "model."
};

// `blocks.0.attn1.to_q.weight` -> `blocks.0.self_attn.q.weight`, and back. norm2 of diffusers is
// norm3 of the original. Empty when the name belongs to no tensor of this network.
std::string wan_to_original(std::string_view diffusers);
std::string wan_to_diffusers(std::string_view original);

// The shape of a tensor by its diffusers name; empty when the network has none of that name.
std::vector<int64_t> wan_shape(const WanConfig& config, std::string_view diffusers);

// `blocks_3_self_attn_q` or `blocks_3_attn1_to_q` -> `blocks.3.attn1.to_q`: modules as trainers
// flatten them. Empty when it is none of this network.
std::string wan_module_of_flat(std::string_view flat);

// Which scheme and prefix the source uses; throws Error naming the source and the tensors looked
// for.
WanNames detect_wan_names(const WeightSource& source);

// For WeightReader: diffusers name -> name in a source that uses `names`. The result throws Error
// when asked for a tensor that is not Wan's.
std::function<std::string(std::string_view)> wan_rename(const WanNames& names);

}  // namespace lacuna
