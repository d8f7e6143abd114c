// SPDX-License-Identifier: Apache-2.0
// JSON from files nobody vouches for.
#pragma once

#include <cstdint>
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

// Reads the members of one JSON object; every complaint names the file and the object. What it
// refers to must outlive it.
class HostileObject {
 public:
  // Throws Error if `json` is no object.
  HostileObject(const nlohmann::json& json, std::string_view what, std::string_view who);

  // Present and not null, else nullptr.
  const nlohmann::json* find(const char* key) const;
  // The calls below throw Error unless the member is there and of their kind.
  const nlohmann::json& object(const char* key) const;
  const nlohmann::json& array(const char* key) const;
  const std::string& text(const char* key) const;
  // 0 to 2^30.
  int32_t id(const char* key) const;
  // `absent` where the member is missing or null.
  bool flag(const char* key, bool absent) const;

 private:
  const nlohmann::json& json_;
  std::string_view what_, who_;
};

}  // namespace lacuna
