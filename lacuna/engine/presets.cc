// SPDX-License-Identifier: Apache-2.0
#include "lacuna/engine/presets.h"

#include <algorithm>
#include <charconv>
#include <utility>
#include <vector>

#include "lacuna/core/error.h"
#include "lacuna/engine/policy.h"

namespace lacuna {

namespace {

// Counts of dense steps and steps of searches are written as shares of the published number of
// steps.
constexpr Preset kPresets[] = {
    {"haste", "xattention:stride=16,top_p=0.9,refresh=drift,relative=0,delta=30", "", "10%", "",
     "HASTE v2 (arXiv 2605.14513) on XAttention, Wan2.1: 5 of 50 steps"},
    {"haste-v1", "xattention:stride=16,top_p=0.9,refresh=drift,relative=0,delta=30", "", "", "",
     "HASTE v1: the same without dense steps"},
    {"haste+svg2", "svg2:top_p=0.9,min_kc_ratio=0.1,refresh=drift,relative=0,delta=8", "", "10%",
     "", "HASTE v2 on SVG2, Wan2.1: 5 of 50 steps; clusters scale with the tokens"},
    {"xattention-video", "xattention:stride=8,top_p=0.9", "", "10%", "",
     "XAttention (arXiv 2503.16428), HunyuanVideo: 5 of 50 steps"},
    {"svg-wan", "svg:density=0.3", "", "20%", "3%", "Sparse VideoGen scripts, Wan2.1 720p"},
    {"svg-hunyuan", "svg:density=0.25,profile_frames=1.5,first_frame=0", "", "10%", "3%",
     "Sparse VideoGen scripts, HunyuanVideo 720p"},
    {"svg2-wan", "svg2:top_p=0.9,min_kc_ratio=0.1", "", "20%", "3%",
     "SVG2 (arXiv 2505.18875) scripts, Wan2.1 T2V 720p: 300 and 1000 clusters at 75600 tokens"},
    {"svg2-hunyuan", "svg2:top_p=0.9,min_kc_ratio=0.1,q_clusters=400,k_clusters=1000", "", "10%",
     "3%", "SVG2 scripts, HunyuanVideo 720p"},
    {"adaspa-video", "adaspa:density=0.2,refresh=at_steps,at=18%+58%", "", "18%", "",
     "AdaSpa (arXiv 2502.21079), HunyuanVideo: searches at steps 10 and 30 of 50, counted from 1; "
     "the first gives a dense output"},
    {"radial-wan", "radial:decay=0.2", "", "24%", "0",
     "Radial Attention (arXiv 2506.19852), Wan2.1-14B: 12 of 50 steps"},
    {"radial-wan2.2", "radial:decay=0.8", "", "27.5%", "0",
     "Radial Attention, Wan2.2-14B: 11 of 40 steps"},
    {"radial-hunyuan", "radial:decay=0.95,first_frame=0", "", "24%", "",
     "Radial Attention, HunyuanVideo: 12 of 50 steps"},
    {"sta-wan", "window:window_frames=3,window_height=3,window_width=3", "", "24%", "",
     "Sliding Tile Attention (arXiv 2502.04507), Wan2.1: 12 of 50 steps; one window of its search "
     "for all heads"},
    {"sta-hunyuan", "window:window_frames=3,window_height=3,window_width=5", "", "24%", "",
     "Sliding Tile Attention, HunyuanVideo; one window of its search for all heads"},
    {"sparge-wan", "sparge:top_k=0.4", "", "", "", "SpargeAttn (arXiv 2502.18137), Wan2.2 example"},
    {"sparge-cdf", "sparge:top_k=0,top_cdf=0.98,similarity=0.6", "", "", "",
     "SpargeAttn, defaults of its top-cdf call"},
    {"blasst", "dense", "running_max:a=314.68,b=6.1665,sparsity=0.75", "35%", "0-1,-2,-1",
     "BLASST (arXiv 2512.12087), NVIDIA's Wan2.2-T2V-A14B, low-noise expert: dense while t >= "
     "0.86, "
     "14 of 40 steps at shift 3",
     0.86},
    {"cef", "dense", "running_lse:lambda=-6", "", "",
     "Cumulative energy filtering (arXiv 2606.16317), Wan2.2-14B"},
};

struct Item {
  std::string_view key, text;  // text is key=value
};

// At least one item, which may be empty: parse_plan and parse_index_list say what is wrong with it.
std::vector<Item> items_of(std::string_view text) {
  std::vector<Item> items;
  while (true) {
    const std::string_view part = text.substr(0, text.find(','));
    items.push_back({part.substr(0, part.find('=')), part});
    if (part.size() == text.size()) return items;
    text.remove_prefix(part.size() + 1);
  }
}

bool is_refresh_key(std::string_view key) {
  if (key == "refresh" || key == "at") return true;
  for (const RefreshInfo& info : all_refresh_rules())
    for (const ParamSpec& spec : info.specs)
      if (spec.name == key) return true;
  return false;
}

// `preset` with the keys of `given` (`key=value,...`) in place of its own.
std::string merged(std::string_view preset, std::string_view given) {
  const size_t colon = preset.find(':');
  std::string text(preset.substr(0, colon));
  std::string separator = ":";
  const std::vector<Item> changes = items_of(given);
  const auto given_key = [&](std::string_view key) {
    return std::any_of(changes.begin(), changes.end(), [&](const Item& item) {
      return item.key == key || (item.key == "refresh" && is_refresh_key(key));
    });
  };
  const auto add = [&](const Item& item) {
    text.append(separator).append(item.text);
    separator = ",";
  };
  if (colon != std::string_view::npos)
    for (const Item& item : items_of(preset.substr(colon + 1)))
      if (!given_key(item.key)) add(item);
  for (const Item& item : changes) add(item);
  return text;
}

void fill(std::string& word, std::string_view preset) {
  if (word.empty()) word = preset;
}

// `20%` of `total`, rounded down; -1 when the text is no share.
int share_of(std::string_view who, std::string_view text, int total) {
  if (!text.ends_with('%')) return -1;
  double percent = -1.0;
  const char* const last = text.data() + text.size() - 1;
  const auto [end, error] = std::from_chars(text.data(), last, percent);
  LACUNA_CHECK(error == std::errc() && end == last && percent >= 0.0 && percent <= 100.0,
               "{}: '{}', expected a share such as 20%", who, text);
  // 27.5 % of 40 is 11, also when the product is a little less.
  return static_cast<int>(percent * total / 100.0 + 1e-9);
}

// Steps of `at` that are shares of `num_steps`, in the words of a method.
std::string expand_at(const std::string& attention, int num_steps) {
  const size_t colon = attention.find(':');
  if (colon == std::string::npos) return attention;
  std::string text = attention.substr(0, colon);
  char separator = ':';
  for (const Item& item : items_of(std::string_view(attention).substr(colon + 1))) {
    text += std::exchange(separator, ',');
    if (!item.text.starts_with("at=")) {
      text += item.text;
      continue;
    }
    text += "at=";
    std::string_view rest = item.text.substr(3);
    while (true) {
      const std::string_view part = rest.substr(0, rest.find('+'));
      const int share = share_of("at", part, num_steps);
      text += share >= 0 ? std::to_string(share) : std::string(part);
      if (part.size() == rest.size()) break;
      text += '+';
      rest.remove_prefix(part.size() + 1);
    }
  }
  return text;
}

std::string expand_layers(std::string_view text, int num_layers) {
  std::string list;
  if (text.empty()) return list;
  for (const Item& item : items_of(text)) {
    std::string part(item.text);
    const int share = share_of("dense-layers", part, num_layers);
    if (share == 0) continue;
    if (share > 0) {
      part = fmt::format("0-{}", share - 1);
    } else if (part.size() > 1 && part.starts_with('-')) {
      const std::vector<int> back = parse_index_list(std::string_view(part).substr(1));
      LACUNA_CHECK(back.size() == 1 && back[0] >= 1 && back[0] <= num_layers,
                   "dense-layers: {}, expected -1 to -{}", part, num_layers);
      part = std::to_string(num_layers - back[0]);
    } else {
      LACUNA_CHECK(parse_index_list(part).back() < num_layers,
                   "dense-layers: {}, expected layers below {}", part, num_layers);
    }
    list.append(list.empty() ? "" : ",").append(part);
  }
  return list;
}

[[noreturn]] void fail_unknown(std::string_view name) {
  std::string methods, presets;
  for (const Method* method : all_methods())
    methods.append(methods.empty() ? "" : ", ").append(method->name());
  for (const Preset& preset : kPresets)
    presets.append(presets.empty() ? "" : ", ").append(preset.name);
  fail("attention: '{}', expected one of the methods {} or of the presets {}", name, methods,
       presets);
}

}  // namespace

std::span<const Preset> all_presets() {
  return kPresets;
}

const Preset* find_preset(std::string_view name) {
  for (const Preset& preset : kPresets)
    if (preset.name == name) return &preset;
  return nullptr;
}

PolicyWords expand_words(PolicyWords words, int num_steps, int num_layers,
                         std::span<const double> sigmas) {
  const std::string given = words.attention;
  const size_t colon = given.find(':');
  const std::string name = given.substr(0, colon);
  const auto methods = all_methods();
  if (const Preset* preset = find_preset(name)) {
    words.attention = colon == std::string::npos
                          ? std::string(preset->attention)
                          : merged(preset->attention, std::string_view(given).substr(colon + 1));
    fill(words.skip, preset->skip);
    if (preset->dense_above > 0.0 && !sigmas.empty())
      fill(words.dense_steps,
           std::to_string(std::count_if(sigmas.begin(), sigmas.end(), [&](double sigma) {
             return sigma >= preset->dense_above;
           })));
    fill(words.dense_steps, preset->dense_steps);
    fill(words.dense_layers, preset->dense_layers);
  } else if (std::none_of(methods.begin(), methods.end(),
                          [&](const Method* method) { return method->name() == name; })) {
    fail_unknown(name);
  }
  words.attention = expand_at(words.attention, num_steps);
  fill(words.skip, "none");
  const int steps = share_of("dense-steps", words.dense_steps, num_steps);
  if (steps >= 0) words.dense_steps = std::to_string(steps);
  words.dense_layers = expand_layers(words.dense_layers, num_layers);
  return words;
}

}  // namespace lacuna
