// SPDX-License-Identifier: Apache-2.0
// What a model folder says about how it wants to be run: `lacuna_defaults` in model_index.json.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "lacuna/models/pipeline/request.h"

namespace lacuna {

// Reads the keys that are there into `defaults` and, for the key "name", into `name`:
//   name, license, negative_prompt            text, at most 200, 200 and 2000 bytes
//   width, height, frames, fps, steps         integers from 1
//   shift, guidance                           numbers, above 0 and from 0
// Guidance sets both experts'. Throws Error naming `who` and the key on an unknown key, another
// type or a value out of range. Form: docs/formats.md.
void read_model_defaults(const nlohmann::json& json, std::string_view who, FamilyDefaults& defaults,
                         std::string& name);

}  // namespace lacuna
