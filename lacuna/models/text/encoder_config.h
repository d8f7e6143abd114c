// SPDX-License-Identifier: Apache-2.0
// Fields of a text encoder's config.json, which is hostile, and prefixes of its tensors' names.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "lacuna/models/weights.h"

namespace lacuna {

// Throws Error naming `who` (a file name) for more than 1 MiB, nesting or malformed text, and for
// what is not an object.
nlohmann::json parse_encoder_config(std::string_view text, std::string_view who);

// The integer called `key`, of magnitude at most 2^62. Throws Error naming who and key.
int64_t config_int(const nlohmann::json& config, const char* key, std::string_view who);

// The number called `key`, or `absent` where there is none. Throws Error naming who and key.
double config_number(const nlohmann::json& config, const char* key, double absent,
                     std::string_view who);

// Throws Error unless `key` is there and equals `value`.
void expect_config(const nlohmann::json& config, const char* key, const nlohmann::json& value,
                   std::string_view who);
// The same of a field that has this value where it is absent.
void expect_config_if_any(const nlohmann::json& config, const char* key,
                          const nlohmann::json& value, std::string_view who);

// Throws Error unless 1 <= value <= max.
void check_config_size(std::string_view who, std::string_view field, int64_t value, int64_t max);

// What stands in front of `tail` in names that end with it, shortest first: single-file exports put
// a prefix in front of every name.
std::vector<std::string> prefixes_of(const WeightSource& source, std::string_view tail);

}  // namespace lacuna
