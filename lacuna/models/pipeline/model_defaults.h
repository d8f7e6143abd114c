// SPDX-License-Identifier: Apache-2.0
// What a model folder says about how it wants to be run: `lacuna_defaults` in model_index.json, and
// scheduler_config.json.
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

// The shift of a FlowMatchEulerDiscreteScheduler, which diffusers' pipelines of Mochi and
// HunyuanVideo run on their own sigmas; 1 where it is not stated, as there. Throws Error naming
// `who` and the key on another class, on anything else that would change the schedule, and where
// `invert_sigmas` is not `inverted`.
double read_flow_shift(const nlohmann::json& json, std::string_view who, bool inverted);

}  // namespace lacuna
