// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/wan/names.h"

#include <array>
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
    {"scale_shift_table", "head.modulation"},
    {"proj_out.", "head.head."},
};

constexpr Pair kBlock[] = {
    {"scale_shift_table", "modulation"},     {"attn1.to_q.", "self_attn.q."},
    {"attn1.to_k.", "self_attn.k."},         {"attn1.to_v.", "self_attn.v."},
    {"attn1.to_out.0.", "self_attn.o."},     {"attn1.norm_q.", "self_attn.norm_q."},
    {"attn1.norm_k.", "self_attn.norm_k."},  {"norm2.", "norm3."},
    {"attn2.to_q.", "cross_attn.q."},        {"attn2.to_k.", "cross_attn.k."},
    {"attn2.to_v.", "cross_attn.v."},        {"attn2.to_out.0.", "cross_attn.o."},
    {"attn2.norm_q.", "cross_attn.norm_q."}, {"attn2.norm_k.", "cross_attn.norm_k."},
    {"ffn.net.0.proj.", "ffn.0."},           {"ffn.net.2.", "ffn.2."},
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

std::string translate_any(std::string_view name, std::string_view Pair::*from,
                          std::string_view Pair::*to) {
  constexpr std::string_view kBlocks = "blocks.";
  if (!name.starts_with(kBlocks)) return translate(name, kGlobal, from, to);
  const size_t dot = name.find('.', kBlocks.size());
  if (dot == std::string_view::npos || dot == kBlocks.size()) return {};
  for (size_t i = kBlocks.size(); i < dot; ++i) {
    if (name[i] < '0' || name[i] > '9') return {};
  }
  const std::string rest = translate(name.substr(dot + 1), kBlock, from, to);
  return rest.empty() ? rest : std::string(name.substr(0, dot + 1)) + rest;
}

}  // namespace

std::string wan_to_original(std::string_view diffusers) {
  return translate_any(diffusers, &Pair::diffusers, &Pair::original);
}

std::string wan_to_diffusers(std::string_view original) {
  return translate_any(original, &Pair::original, &Pair::diffusers);
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
