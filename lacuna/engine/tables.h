// SPDX-License-Identifier: Apache-2.0
// What can be asked for, generated from the ParamSpecs of methods, refresh and skip rules, and from
// the presets.
#pragma once

#include <string>

namespace lacuna {

// The tables of docs/methods.md.
std::string methods_table_markdown();
// {"methods": [{"name", "summary", "formula", "static_mask", "params": [...]}], "refresh": [...],
// "skip": [...], "presets": [{"name", "attention", "skip", "dense_steps", "dense_layers",
// "source"}]}; a parameter is {"name", "default", "min", "max", "integer", "help"}.
std::string methods_json();

}  // namespace lacuna
