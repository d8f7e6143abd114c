// SPDX-License-Identifier: Apache-2.0
// JSON from files nobody vouches for.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace lacuna {

// Parses text nested at most 32 deep: the JSON library copies, prints and frees by recursion, so
// 100 kB of brackets would end the process. Throws Error naming `who`, in one short line (the
// library's own message quotes the whole last token).
nlohmann::json parse_hostile_json(std::string_view text, std::string_view who);

// A value for messages, at most 60 ASCII characters.
std::string shown_json(const nlohmann::json& value);

}  // namespace lacuna
