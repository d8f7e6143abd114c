// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/wan/names.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <span>

#include "lacuna/core/error.h"

namespace lacuna {
namespace {

// A name that ends in '.' stands for `.weight` and `.bias` below it, others are whole.
struct Pair {
  std::string_view diffusers;
  std::string_view original;
};

constexpr Pair kGlobal[] = {
    {"patch_embedding.", "patch_embedding."},
    {"condition_embedder.time_embedder.linear_1.", "time_embedding.0."},
    {"condition_embedder.time_embedder.linear_2.", "time_embedding.2."},
    {"condition_embedder.time_proj.", "time_projection.1."},
    {"condition_embedder.text_embedder.linear_1.", "text_embedding.0."},
    {"condition_embedder.text_embedder.linear_2.", "text_embedding.2."},
    {"condition_embedder.image_embedder.norm1.", "img_emb.proj.0."},
    {"condition_embedder.image_embedder.ff.net.0.proj.", "img_emb.proj.1."},
    {"condition_embedder.image_embedder.ff.net.2.", "img_emb.proj.3."},
    {"condition_embedder.image_embedder.norm2.", "img_emb.proj.4."},
    {"condition_embedder.image_embedder.pos_embed", "img_emb.emb_pos"},
    {"scale_shift_table", "head.modulation"},
    {"proj_out.", "head.head."},
};

constexpr Pair kBlock[] = {
    {"scale_shift_table", "modulation"},
    {"attn1.to_q.", "self_attn.q."},
    {"attn1.to_k.", "self_attn.k."},
    {"attn1.to_v.", "self_attn.v."},
    {"attn1.to_out.0.", "self_attn.o."},
    {"attn1.norm_q.", "self_attn.norm_q."},
    {"attn1.norm_k.", "self_attn.norm_k."},
    {"norm2.", "norm3."},
    {"attn2.to_q.", "cross_attn.q."},
    {"attn2.to_k.", "cross_attn.k."},
    {"attn2.to_v.", "cross_attn.v."},
    {"attn2.to_out.0.", "cross_attn.o."},
    {"attn2.norm_q.", "cross_attn.norm_q."},
    {"attn2.norm_k.", "cross_attn.norm_k."},
    {"attn2.add_k_proj.", "cross_attn.k_img."},
    {"attn2.add_v_proj.", "cross_attn.v_img."},
    {"attn2.norm_added_k.", "cross_attn.norm_k_img."},
    {"ffn.net.0.proj.", "ffn.0."},
    {"ffn.net.2.", "ffn.2."},
};

std::string translate(std::string_view name, std::span<const Pair> pairs,
                      std::string_view Pair::*from, std::string_view Pair::*to) {
  for (const Pair& pair : pairs) {
    const std::string_view stem = pair.*from;
    if (stem.back() != '.') {
      if (name == stem) return std::string(pair.*to);
      continue;
    }
    if (!name.starts_with(stem)) continue;
    const std::string_view leaf = name.substr(stem.size());
    if (leaf == "weight" || leaf == "bias") return std::string(pair.*to) + std::string(leaf);
  }
  return {};
}

// `blocks.12.norm2.bias` -> 12 and `norm2.bias`; index -1 and the name itself when it is of no
// block. `dot` as the name spells it. A layer has one name: `blocks.07` is none.
struct BlockName {
  int64_t index = -1;
  std::string_view rest;
};

BlockName split_block(std::string_view name, char dot) {
  const std::string_view word = "blocks";
  BlockName split{-1, name};
  if (!name.starts_with(word) || name.size() <= word.size() || name[word.size()] != dot)
    return split;
  const char* begin = name.data() + word.size() + 1;
  const char* end = name.data() + name.size();
  int64_t index = 0;
  const auto parsed = std::from_chars(begin, end, index);
  if (parsed.ec != std::errc() || *begin == '-' || parsed.ptr == end || *parsed.ptr != dot)
    return split;
  if (*begin == '0' && parsed.ptr != begin + 1) return split;
  const auto at = static_cast<size_t>(parsed.ptr - name.data()) + 1;
  return {index, name.substr(at)};
}

std::string flattened(std::string_view stem) {
  if (stem.ends_with('.')) stem.remove_suffix(1);
  std::string flat(stem);
  std::replace(flat.begin(), flat.end(), '.', '_');
  return flat;
}

std::string translate_any(std::string_view name, std::string_view Pair::*from,
                          std::string_view Pair::*to) {
  const auto [layer, own] = split_block(name, '.');
  if (layer < 0) return translate(name, kGlobal, from, to);
  const std::string translated = translate(own, kBlock, from, to);
  return translated.empty() ? translated : fmt::format("blocks.{}.{}", layer, translated);
}

}  // namespace

std::string wan_to_original(std::string_view diffusers) {
  return translate_any(diffusers, &Pair::diffusers, &Pair::original);
}

std::string wan_to_diffusers(std::string_view original) {
  return translate_any(original, &Pair::original, &Pair::diffusers);
}

std::vector<int64_t> wan_shape(const WanConfig& config, std::string_view diffusers) {
  const auto [layer, name] = split_block(diffusers, '.');
  if (wan_to_original(diffusers).empty() || layer >= config.num_layers) return {};
  const int64_t d = config.dim(), image = config.image_dim;
  if (name == "scale_shift_table") return {1, layer >= 0 ? 6 : 2, d};
  const bool of_image = name.find("image_embedder") != name.npos || name.find("add") != name.npos;
  if (of_image && image == 0) return {};
  const std::string_view stem = name.substr(0, name.rfind('.'));
  const bool bias = name.ends_with(".bias");
  if (stem == "condition_embedder.image_embedder") {  // pos_embed, which has no `.weight`
    if (config.image_positions == 0) return {};
    return {1, config.image_positions, image};
  }
  if (stem == "condition_embedder.image_embedder.norm1") return {image};
  if (stem.find("norm") != std::string_view::npos) {
    const bool has_bias = stem.ends_with("norm2");
    return bias && !has_bias ? std::vector<int64_t>{} : std::vector<int64_t>{d};
  }
  struct Sizes {
    std::string_view stem;
    std::vector<int64_t> weight;
  };
  const Sizes others[] = {
      {"patch_embedding", {d, config.in_channels, config.patch_t, config.patch_h, config.patch_w}},
      {"condition_embedder.time_embedder.linear_1", {d, config.freq_dim}},
      {"condition_embedder.time_proj", {6 * d, d}},
      {"condition_embedder.text_embedder.linear_1", {d, config.text_dim}},
      {"condition_embedder.image_embedder.ff.net.0.proj", {image, image}},
      {"condition_embedder.image_embedder.ff.net.2", {d, image}},
      {"proj_out", {config.patch_outputs(), d}},
      {"ffn.net.0.proj", {config.ffn_dim, d}},
      {"ffn.net.2", {d, config.ffn_dim}},
  };
  std::vector<int64_t> weight{d, d};
  for (const Sizes& sizes : others)
    if (stem == sizes.stem) weight = sizes.weight;
  return bias ? std::vector<int64_t>{weight[0]} : weight;
}

std::string wan_module_of_flat(std::string_view flat) {
  const auto [layer, name] = split_block(flat, '_');
  const std::span<const Pair> pairs = layer >= 0 ? std::span<const Pair>(kBlock) : kGlobal;
  for (const Pair& pair : pairs) {
    if (name != flattened(pair.diffusers) && name != flattened(pair.original)) continue;
    std::string_view module = pair.diffusers;
    if (!module.ends_with('.')) return {};  // a table, not a module
    module.remove_suffix(1);
    return layer >= 0 ? fmt::format("blocks.{}.{}", layer, module) : std::string(module);
  }
  return {};
}

WanNames detect_wan_names(const WeightSource& source) {
  for (const std::string_view prefix :
       {"", "model.diffusion_model.", "diffusion_model.", "model."}) {
    const auto has = [&](std::string_view name) {
      return source.has(std::string(prefix) + std::string(name));
    };
    // Diffusers first: the hash source has every name, and its weights are keyed by diffusers
    // names.
    if (has("blocks.0.attn1.norm_q.weight") && has("condition_embedder.time_proj.weight")) {
      return {WanNaming::diffusers, std::string(prefix)};
    }
    if (has("blocks.0.self_attn.norm_q.weight") && has("head.modulation")) {
      return {WanNaming::original, std::string(prefix)};
    }
  }
  fail(
      "wan: {} has neither `blocks.0.attn1.norm_q.weight` (diffusers) nor "
      "`blocks.0.self_attn.norm_q.weight` (original), expected a Wan transformer",
      source.describe());
}

std::function<std::string(std::string_view)> wan_rename(const WanNames& names) {
  return [names](std::string_view name) {
    const std::string original = wan_to_original(name);
    LACUNA_CHECK(!original.empty(), "wan: tensor name `{}`, expected one of the network's", name);
    return names.prefix + (names.naming == WanNaming::original ? original : std::string(name));
  };
}

}  // namespace lacuna
