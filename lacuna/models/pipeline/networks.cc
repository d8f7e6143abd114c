// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/pipeline/networks.h"

#include "lacuna/core/error.h"
#include "lacuna/models/wan/names.h"
#include "lacuna/models/wan/wan_config.h"

namespace lacuna {
namespace {

WanConfig wan_config_of(const CheckpointPart& part, const WeightSource& source) {
  const auto rename = wan_rename(detect_wan_names(source));
  if (!part.config) return infer_wan_config(source, rename);
  const std::string who = part.config_file.string();
  const WanConfig config = wan_config_from_json(part.config_text, who);
  const std::string beyond =
      rename(fmt::format("blocks.{}.attn1.norm_q.weight", config.num_layers));
  LACUNA_CHECK(!source.has(beyond),
               "{}: `num_layers` is {}, expected all layers of {}, which has {}", who,
               config.num_layers, source.describe(), beyond);
  return config;
}

}  // namespace

std::unique_ptr<const Architecture> read_architecture(const CheckpointPart& part,
                                                      const WeightSource& source) {
  return std::make_unique<WanArchitecture>(wan_config_of(part, source));
}

std::function<std::string(std::string_view)> network_rename(TensorSet /*tensors*/,
                                                            const WeightSource& source) {
  return wan_rename(detect_wan_names(source));
}

void check_experts(const CheckpointPart& first_part, const WeightSource& first,
                   const CheckpointPart& second_part, const WeightSource& second) {
  LACUNA_CHECK(wan_config_of(first_part, first) == wan_config_of(second_part, second),
               "model: {} and {} have different sizes, expected two experts of one model",
               first.describe(), second.describe());
  const WanNames names = detect_wan_names(first);
  const auto rename = wan_rename(detect_wan_names(second));
  for (const std::string& name : first.names()) {
    if (!name.starts_with(names.prefix)) continue;
    const std::string own = name.substr(names.prefix.size());
    const std::string asked = names.naming == WanNaming::original ? wan_to_diffusers(own) : own;
    if (wan_to_original(asked).empty()) continue;  // not the network's
    LACUNA_CHECK(second.has(rename(asked)), "model: {} lacks {}, expected all that {} has",
                 second.describe(), rename(asked), first.describe());
  }
}

std::unique_ptr<const Architecture> preset_architecture(std::string_view name) {
  return std::make_unique<WanArchitecture>(wan_preset(name));
}

std::vector<std::string_view> preset_names() {
  const auto wan = wan_preset_names();
  return {wan.begin(), wan.end()};
}

}  // namespace lacuna
