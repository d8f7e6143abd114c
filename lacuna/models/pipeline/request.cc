// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/pipeline/request.h"

#include <set>
#include <type_traits>

#include "lacuna/core/error.h"
#include "lacuna/engine/json_object.h"

namespace lacuna {
namespace {

// Reads or writes every field with one list, so that the two cannot drift apart.
template <typename Visit>
void visit_fields(Request& r, Visit visit) {
  visit("model", r.model);
  visit("lora", r.lora);
  visit("lora_high", r.lora_high);
  visit("lora_low", r.lora_low);
  visit("lora_content", r.lora_content);
  visit("tae", r.tae);
  visit("prompt", r.prompt);
  visit("negative_prompt", r.negative_prompt);
  visit("image", r.image);
  visit("image_content", r.image_content);
  visit("last_image", r.last_image);
  visit("last_image_content", r.last_image_content);
  visit("width", r.width);
  visit("height", r.height);
  visit("frames", r.frames);
  visit("fps", r.fps);
  visit("steps", r.sampler.num_steps);
  visit("shift", r.sampler.shift);
  visit("timesteps", r.sampler.timesteps);
  visit("warp_timesteps", r.sampler.warp_timesteps);
  visit("guidance", r.guidance);
  visit("guidance_low", r.guidance_low);
  visit("embedded_guidance", r.embedded_guidance);
  visit("boundary", r.boundary);
  visit("seed", r.seed);
  visit("dtype", r.dtype);
  visit("attention", r.attention);
  visit("skip", r.skip);
  visit("profile", r.profile);
  visit("replay_masks", r.replay_masks);
  visit("policy_content", r.policy_content);
  visit("dense_steps", r.dense_steps);
  visit("dense_layers", r.dense_layers);
  visit("min_tokens", r.min_tokens);
}

}  // namespace

std::string Request::to_json() const {
  Json json;
  Request copy = *this;
  visit_fields(copy, [&](const char* key, const auto& value) {
    if constexpr (std::is_same_v<std::decay_t<decltype(value)>, std::optional<double>>) {
      if (value) json[key] = *value;
    } else {
      json[key] = value;
    }
  });
  for (const char* key : {"lora", "lora_high", "lora_low", "lora_content", "tae", "image_content",
                          "last_image", "last_image_content", "policy_content"})
    if (json[key].empty() || json[key] == "") json.erase(key);
  json["sampler"] = sampler_name(sampler.kind);
  json["sigma_convention"] = convention_name(sampler.convention);
  // A prompt is a stranger's bytes; invalid UTF-8 is replaced instead of thrown at.
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Request Request::from_json(const std::string& text, const std::string& who) {
  const Json json = parse_json(text, who);
  LACUNA_CHECK(json.is_object(), "{}: not a JSON object", who);
  Request r;
  try {
    std::set<std::string> known{"sampler", "sigma_convention"};
    visit_fields(r, [&](const char* key, auto& value) {
      known.insert(key);
      // Younger than the first latents files; LoRA, contents and embedded guidance stand only where
      // there are.
      const std::string_view name = key;
      const bool optional = name == "replay_masks" || name == "policy_content" ||
                            name == "embedded_guidance" || name == "tae" ||
                            name.starts_with("lora") || name.starts_with("image") ||
                            name.starts_with("last_image");
      if (optional && !json.contains(key)) return;
      if constexpr (std::is_same_v<std::decay_t<decltype(value)>, std::optional<double>>)
        value = json.at(key).get<double>();
      else
        json.at(key).get_to(value);
    });
    r.sampler.kind = parse_sampler(json.at("sampler").get<std::string>());
    r.sampler.convention = parse_convention(json.at("sigma_convention").get<std::string>());
    r.sampler.seed = r.seed;
    for (const auto& [key, value] : json.items())
      LACUNA_CHECK(known.contains(key), "unknown key {}", key);
  } catch (const Json::exception& error) {
    fail("{}: {}", who, error.what());
  } catch (const Error& error) {  // of a word, which does not know where it stands
    fail("{}: {}", who, error.what());
  }
  return r;
}

}  // namespace lacuna
