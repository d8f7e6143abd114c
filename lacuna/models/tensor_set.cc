// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/tensor_set.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <vector>

#include "lacuna/core/error.h"

namespace lacuna {

bool is_transformer(TensorSet set) {
  return set == TensorSet::wan_diffusers || set == TensorSet::wan_original ||
         set == TensorSet::mochi_diffusers || set == TensorSet::hunyuan_diffusers ||
         set == TensorSet::hunyuan_original;
}

bool is_text_encoder(TensorSet set) {
  return set == TensorSet::umt5_hugging_face || set == TensorSet::umt5_original ||
         set == TensorSet::umt5_gguf || set == TensorSet::llama;
}

bool is_pooled_text_encoder(TensorSet set) {
  return set == TensorSet::clip_text;
}

bool is_tiny_decoder(TensorSet set) {
  return set == TensorSet::taehv;
}

bool is_image_encoder(TensorSet set) {
  return set == TensorSet::clip_vision;
}

bool is_vae(TensorSet set) {
  return set != TensorSet::unknown && !is_transformer(set) && !is_text_encoder(set) &&
         !is_pooled_text_encoder(set) && !is_tiny_decoder(set) && !is_image_encoder(set);
}

std::string_view part_name(TensorSet set) {
  return is_transformer(set)           ? "transformer"
         : is_text_encoder(set)        ? "text encoder"
         : is_pooled_text_encoder(set) ? "pooled text encoder"
         : is_tiny_decoder(set)        ? "tiny decoder"
         : is_image_encoder(set)       ? "image encoder"
                                       : "VAE";
}

void refuse_other_networks(TensorSet set, std::span<const std::string> names,
                           std::string_view who) {
  if (set != TensorSet::wan_diffusers && set != TensorSet::wan_original) return;
  struct Sign {
    std::string_view component, meaning;
  };
  // What says most comes first: Animate and some VACE files are made of image-to-video networks.
  static constexpr Sign kSigns[] = {
      {"to_gate_compress",
       "trained for video sparse attention (VSA): its attention is gated and "
       "not a plain softmax"},
      {"proj_l", "trained for sparse-linear attention (SLA): it adds a linear attention branch"},
      {"vace_patch_embedding", "a VACE network"},
      {"vace_blocks", "a VACE network"},
      {"casual_audio_encoder", "a speech-to-video network (S2V)"},  // upstream's spelling
      {"audio_injector", "a speech-to-video network (S2V)"},
      {"audio_proj", "an audio-driven network (HuMo, MultiTalk)"},
      {"face_adapter", "an Animate network"},
      {"pose_patch_embedding", "an Animate network"},
      {"patch_embedding_pose", "a SCAIL network"},
      {"patch_embedding_mask", "a SCAIL network"},
      {"patch_embedding_global", "a WanDancer network"},
      {"control_adapter", "a Fun-Control camera network"},
      {"ref_conv", "a Fun-Control network"},
      {"fps_embedding", "a SkyReels-V2 diffusion-forcing network"},
      {"cam_encoder", "a ReCamMaster network"},
      {"lora_A", "a network with a LoRA beside its weights"},
      {"lora_down", "a network with a LoRA beside its weights"},
  };
  std::vector<std::string> dotted;
  for (const std::string& name : names) dotted.push_back(fmt::format(".{}.", name));
  for (const Sign& sign : kSigns) {
    const std::string component = fmt::format(".{}.", sign.component);
    for (size_t i = 0; i < names.size(); ++i) {
      LACUNA_CHECK(dotted[i].find(component) == std::string::npos,
                   "{}: holds {}, so it is {}; expected a text-to-video or image-to-video network",
                   who, names[i], sign.meaning);
    }
  }
}

TensorSet classify_tensors(std::span<const std::string> names) {
  const std::set<std::string_view> set(names.begin(), names.end());
  const auto has = [&](std::string_view name) { return set.contains(name); };
  const auto has_prefix = [&](std::string_view prefix) {
    const auto next = set.lower_bound(prefix);
    return next != set.end() && next->starts_with(prefix);
  };
  const auto ends = [&](std::string_view suffix) {
    return std::any_of(names.begin(), names.end(),
                       [&](const std::string& name) { return name.ends_with(suffix); });
  };
  if (has("blocks.0.self_attn.norm_q.weight") && has("head.modulation")) {
    return TensorSet::wan_original;
  }
  if (has("blocks.0.attn1.norm_q.weight") && has_prefix("condition_embedder.")) {
    return TensorSet::wan_diffusers;
  }
  if (has("pos_frequencies") && has("transformer_blocks.0.attn1.add_k_proj.weight")) {
    return TensorSet::mochi_diffusers;
  }
  if (has("single_transformer_blocks.0.proj_mlp.weight") &&
      has_prefix("context_embedder.token_refiner.")) {
    return TensorSet::hunyuan_diffusers;
  }
  if (has("double_blocks.0.img_attn_qkv.weight") &&
      has_prefix("txt_in.individual_token_refiner.")) {
    return TensorSet::hunyuan_original;
  }
  if (has("decoder.middle.0.residual.0.gamma")) {
    return has_prefix("decoder.upsamples.0.upsamples.") ? TensorSet::vae22_original
                                                        : TensorSet::vae21_original;
  }
  if (has("decoder.mid_block.resnets.0.norm1.gamma")) {
    return has_prefix("decoder.up_blocks.0.upsampler.") ? TensorSet::vae22_diffusers
                                                        : TensorSet::vae21_diffusers;
  }
  if (has("decoder.block_in.resnets.0.norm1.norm_layer.weight")) return TensorSet::vae_mochi;
  if (has("decoder.up_blocks.0.resnets.0.conv1.conv.weight") && has("post_quant_conv.weight")) {
    return TensorSet::vae_hunyuan;
  }
  if (has("encoder.block.0.layer.0.SelfAttention.q.weight")) return TensorSet::umt5_hugging_face;
  if (has("enc.blk.0.attn_q.weight")) return TensorSet::umt5_gguf;
  if (has("blocks.0.attn.q.weight") && has("token_embedding.weight")) {
    return TensorSet::umt5_original;
  }
  // Those of pictures have no matrices over time.
  if (has("decoder.3.conv.0.weight") && has("decoder.7.conv.weight") && has("decoder.22.weight")) {
    return TensorSet::taehv;
  }
  if (has("basis") && has("mean") && has("scale")) return TensorSet::linear_vae;
  // Before Llama, which a model of both would end in as well. A whole CLIP counts as its text half.
  if (ends("embeddings.token_embedding.weight")) return TensorSet::clip_text;
  if (ends("embeddings.class_embedding") && ends("pre_layrnorm.weight")) {
    return TensorSet::clip_vision;
  }
  if (ends("layers.0.self_attn.q_proj.weight") && ends("layers.0.mlp.gate_proj.weight")) {
    return TensorSet::llama;
  }
  return TensorSet::unknown;
}

}  // namespace lacuna
