// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/pipeline/networks.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "lacuna/core/error.h"
#include "lacuna/models/hunyuan/dit.h"
#include "lacuna/models/hunyuan/names.h"
#include "lacuna/models/mochi/dit.h"
#include "lacuna/models/wan/names.h"
#include "lacuna/models/wan/wan_config.h"

namespace lacuna {
namespace {

// Wan has no image-to-video network of this size; that of 14B cannot be told from Wan's.
void refuse_inpainting(const WanConfig& config, const WeightSource& source) {
  LACUNA_CHECK(
      config.condition_channels() == 0 || config.num_layers != 30 || config.dim() != 1536,
      "{}: 1.3 billion parameters and {} channels in, which is a Fun-InP network; expected "
      "one of Wan's",
      source.describe(), config.in_channels);
}

WanConfig wan_config_of(const CheckpointPart& part, const WeightSource& source) {
  const auto rename = wan_rename(detect_wan_names(source));
  if (!part.config) {
    const WanConfig config = infer_wan_config(source, rename);
    refuse_inpainting(config, source);
    return config;
  }
  const std::string who = part.config_file.string();
  WanConfig config = wan_config_from_json(part.config_text, who);
  read_image_sizes(source, rename, who, config);
  refuse_inpainting(config, source);
  const std::string beyond =
      rename(fmt::format("blocks.{}.attn1.norm_q.weight", config.num_layers));
  LACUNA_CHECK(!source.has(beyond),
               "{}: `num_layers` is {}, expected all layers of {}, which has {}", who,
               config.num_layers, source.describe(), beyond);
  return config;
}

bool is_hunyuan(TensorSet set) {
  return set == TensorSet::hunyuan_diffusers || set == TensorSet::hunyuan_original;
}

bool is_wan(const CheckpointPart& part) {
  return part.tensors == TensorSet::wan_diffusers || part.tensors == TensorSet::wan_original;
}

// Of families whose sizes the tensors alone do not tell.
const std::string& config_text_of(const CheckpointPart& part) {
  LACUNA_CHECK(part.config, "{}: no config.json beside it, expected one with the sizes",
               part.files.front().string());
  return part.config_text;
}

// A config of fewer layers than there are would leave the others out in silence.
void check_all_layers(const CheckpointPart& part, const WeightSource& source, const char* field,
                      int64_t layers, std::string_view pattern) {
  const std::string beyond = fmt::format(fmt::runtime(pattern), layers);
  LACUNA_CHECK(!source.has(beyond), "{}: `{}` is {}, expected all layers of {}, which has {}",
               part.config_file.string(), field, layers, source.describe(), beyond);
}

std::unique_ptr<const Architecture> mochi_of(const CheckpointPart& part,
                                             const WeightSource& source) {
  const MochiConfig config =
      mochi_config_from_json(config_text_of(part), part.config_file.string());
  check_all_layers(part, source, "num_layers", config.num_layers,
                   "transformer_blocks.{}.attn1.to_q.weight");
  return std::make_unique<MochiArchitecture>(config);
}

std::unique_ptr<const Architecture> hunyuan_of(const CheckpointPart& part,
                                               const WeightSource& source) {
  if (!part.config) return std::make_unique<HunyuanArchitecture>(infer_hunyuan_config(source));
  const HunyuanConfig config =
      hunyuan_config_from_json(part.config_text, part.config_file.string());
  check_all_layers(part, source, "num_layers", config.num_layers,
                   "transformer_blocks.{}.attn.to_q.weight");
  check_all_layers(part, source, "num_single_layers", config.num_single_layers,
                   "single_transformer_blocks.{}.attn.to_q.weight");
  check_all_layers(part, source, "num_refiner_layers", config.num_refiner_layers,
                   "context_embedder.token_refiner.refiner_blocks.{}.attn.to_q.weight");
  return std::make_unique<HunyuanArchitecture>(config);
}

template <typename Names>
bool contains(const Names& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace

std::unique_ptr<WeightSource> open_network(const CheckpointPart& part) {
  auto source = open_weights(part.files);
  return is_hunyuan(part.tensors) ? with_hunyuan_names(std::move(source)) : std::move(source);
}

std::unique_ptr<const Architecture> read_architecture(const CheckpointPart& part,
                                                      const WeightSource& source) {
  if (part.tensors == TensorSet::mochi_diffusers) return mochi_of(part, source);
  if (is_hunyuan(part.tensors)) return hunyuan_of(part, source);
  return std::make_unique<WanArchitecture>(wan_config_of(part, source));
}

std::function<std::string(std::string_view)> network_rename(TensorSet tensors,
                                                            const WeightSource& source) {
  if (tensors == TensorSet::mochi_diffusers || is_hunyuan(tensors)) return {};
  return wan_rename(detect_wan_names(source));
}

void check_experts(const CheckpointPart& first_part, const WeightSource& first,
                   const CheckpointPart& second_part, const WeightSource& second) {
  LACUNA_CHECK(is_wan(first_part) && is_wan(second_part),
               "model: {} and {}, expected one transformer, or two experts of a Wan model",
               first.describe(), second.describe());
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
  if (contains(mochi_preset_names(), name))
    return std::make_unique<MochiArchitecture>(mochi_preset(name));
  if (contains(hunyuan_preset_names(), name))
    return std::make_unique<HunyuanArchitecture>(hunyuan_preset(name));
  if (contains(wan_preset_names(), name))
    return std::make_unique<WanArchitecture>(wan_preset(name));
  fail("synthetic: `{}`, expected one of {}", name, fmt::join(preset_names(), ", "));
}

std::vector<std::string_view> preset_names() {
  std::vector<std::string_view> names;
  for (const auto& family : {wan_preset_names(), mochi_preset_names(), hunyuan_preset_names()})
    names.insert(names.end(), family.begin(), family.end());
  return names;
}

}  // namespace lacuna
