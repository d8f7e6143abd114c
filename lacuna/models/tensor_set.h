// SPDX-License-Identifier: Apache-2.0
// What a set of tensors is, told by their names.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace lacuna {

enum class TensorSet : uint8_t {
  unknown,
  wan_diffusers,
  wan_original,  // also ComfyUI and GGUF
  mochi_diffusers,
  hunyuan_diffusers,
  hunyuan_original,  // also GGUF
  vae21_diffusers,
  vae21_original,
  vae22_diffusers,
  vae22_original,
  vae_mochi,
  vae_hunyuan,
  linear_vae,
  taehv,
  umt5_hugging_face,  // also T5
  umt5_original,
  umt5_gguf,
  llama,
  clip_text,
  clip_vision,
};

// By tensor names alone, prefixes already stripped.
TensorSet classify_tensors(std::span<const std::string> names);

bool is_transformer(TensorSet set);
bool is_vae(TensorSet set);
bool is_tiny_decoder(TensorSet set);         // what decodes instead of a VAE
bool is_text_encoder(TensorSet set);         // the one that gives a row per token
bool is_pooled_text_encoder(TensorSet set);  // the one that gives a row per prompt
bool is_image_encoder(TensorSet set);
// "transformer", "VAE", "tiny decoder", "text encoder", "pooled text encoder", "image encoder".
std::string_view part_name(TensorSet set);

// Throws Error naming `who`, the tensor and what it means where the set looks like one that this
// library computes, and is not.
void refuse_other_networks(TensorSet set, std::span<const std::string> names, std::string_view who);

}  // namespace lacuna
