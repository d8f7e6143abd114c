// SPDX-License-Identifier: Apache-2.0
// Published configurations by name: a method with its parameters, refresh rule, skip rule and the
// steps and layers that its authors leave dense.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace lacuna {

struct Preset {
  std::string_view name;          // differs from every method's
  std::string_view attention;     // as parse_plan reads it; `at` may hold shares of the steps
  std::string_view skip;          // as parse_skip reads it; empty = none
  std::string_view dense_steps;   // as in PolicyWords; empty = none
  std::string_view dense_layers;  // as in PolicyWords; empty = none
  std::string_view source;        // paper or code, model, and what was changed
  // Above 0: where the noise levels are known, steps of at least this sigma are dense instead.
  double dense_above = 0.0;
};

std::span<const Preset> all_presets();
// Null when there is none of that name.
const Preset* find_preset(std::string_view name);

// A policy in the words of a command line; an empty word was not given.
struct PolicyWords {
  // METHOD[:key=value,...] or PRESET[:key=value,...]; `at` may hold shares of the steps.
  std::string attention;
  std::string skip;          // as parse_skip reads it
  std::string dense_steps;   // as make_policy reads it, or `20%`: the first 20 % of the steps
  std::string dense_layers;  // as make_policy reads it; `3%` is the first 3 %, `-1` the last layer
};

// The same policy in words that parse_plan, parse_skip and make_policy read. A preset's settings
// fill what was not given: given words win, and keys after the preset's name win over its own (a
// given refresh rule over all of the preset's refresh keys). Shares are rounded down. `sigmas` are
// those of the steps, falling, or empty when not known. Throws Error listing methods and presets
// when the name is neither, or when a share or layer is not understood.
PolicyWords expand_words(PolicyWords words, int num_steps, int num_layers,
                         std::span<const double> sigmas = {});

}  // namespace lacuna
