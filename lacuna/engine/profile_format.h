// SPDX-License-Identifier: Apache-2.0
// What the reader and the writer of profiles share.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lacuna/engine/json_object.h"
#include "lacuna/engine/policy.h"

namespace lacuna {

inline constexpr std::string_view kProfileSchema = "lacuna-profile";
inline constexpr int kProfileVersion = 1;

std::string mask_hash_text(uint64_t hash);    // 16 hex digits
std::string mask_tensor_name(uint64_t hash);  // in the side file, i64 [heads, q blocks, words]
// ("method.xattention", 1), ("refresh.drift", 1), ("skip.recall", 1): what a plan computes with.
std::vector<std::pair<std::string, int>> formulas_of(const Plan& plan);
// Throws Error unless load_profile would accept the JSON; does not touch the side file.
void check_profile_json(const Json& json, std::string_view who);

}  // namespace lacuna
