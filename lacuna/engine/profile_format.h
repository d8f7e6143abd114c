// SPDX-License-Identifier: Apache-2.0
// What readers and writers of profiles, mask logs and traces share.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lacuna/engine/json_object.h"
#include "lacuna/engine/policy.h"
#include "lacuna/engine/profile.h"

namespace lacuna {

inline constexpr std::string_view kProfileSchema = "lacuna-profile";
inline constexpr int kProfileVersion = 1;

// Adds `model`, `grid` and `sigmas` to an object / reads them. Throws Error naming the JSON path.
void add_target(const ProfileTarget& target, Json& json);
ProfileTarget read_target(const JsonObject& top);
// Throws Error `<what>: made for ..., this run has ...` unless all agree; sigmas to 1e-6.
void check_target(const ProfileTarget& made, const ProfileTarget& run, std::string_view what);
// The JSON on one line. Throws Error when a text in it is not valid UTF-8.
std::string dump_json(const Json& json);

std::string_view branch_name(Branch branch);  // "cond", "uncond"
Branch read_branch(const JsonObject& object);

std::string mask_hash_text(uint64_t hash);  // 16 hex digits
uint64_t parse_mask_hash(const std::string& text, std::string_view path);
std::string mask_tensor_name(uint64_t hash);  // in the side file, i64 [heads, q blocks, words]
// ("method.xattention", 1), ("refresh.drift", 1), ("skip.recall", 1): what a plan computes with.
std::vector<std::pair<std::string, int>> formulas_of(const Plan& plan);
// Throws Error unless load_profile would accept the JSON; does not touch the side file.
void check_profile_json(const Json& json, std::string_view who);

}  // namespace lacuna
