// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/text/hostile_json.h"

#include "lacuna/core/error.h"

namespace lacuna {

nlohmann::json parse_hostile_json(std::string_view text, std::string_view who) {
  constexpr int kMaxDepth = 32;
  int depth = 0;
  bool quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quoted) {
      if (c == '\\') ++i;
      if (c == '"') quoted = false;
      continue;
    }
    quoted = c == '"';
    if (c == '[' || c == '{') ++depth;
    if (c == ']' || c == '}') --depth;
    LACUNA_CHECK(depth <= kMaxDepth, "{}: JSON nested deeper than {}", who, kMaxDepth);
  }
  nlohmann::json json =
      nlohmann::json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  LACUNA_CHECK(!json.is_discarded(), "{}: malformed JSON", who);
  return json;
}

std::string shown_json(const nlohmann::json& value) {
  constexpr size_t kMaxShown = 60;
  std::string text = value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  if (text.size() > kMaxShown) text = text.substr(0, kMaxShown - 3) + "...";
  return text;
}

HostileObject::HostileObject(const nlohmann::json& json, std::string_view what,
                             std::string_view who)
    : json_(json), what_(what), who_(who) {
  LACUNA_CHECK(json.is_object(), "{}: {} is {}, expected an object", who, what, shown_json(json));
}

const nlohmann::json* HostileObject::find(const char* key) const {
  const auto it = json_.find(key);
  return it == json_.end() || it->is_null() ? nullptr : &*it;
}

const nlohmann::json& HostileObject::object(const char* key) const {
  const nlohmann::json* value = find(key);
  LACUNA_CHECK(value != nullptr && value->is_object(), "{}: {} has no object `{}`", who_, what_,
               key);
  return *value;
}

const nlohmann::json& HostileObject::array(const char* key) const {
  const nlohmann::json* value = find(key);
  LACUNA_CHECK(value != nullptr && value->is_array(), "{}: {} has no array `{}`", who_, what_, key);
  return *value;
}

const std::string& HostileObject::text(const char* key) const {
  const nlohmann::json* value = find(key);
  LACUNA_CHECK(value != nullptr && value->is_string(), "{}: {} has no string `{}`", who_, what_,
               key);
  return value->get_ref<const std::string&>();
}

int32_t HostileObject::id(const char* key) const {
  const nlohmann::json* value = find(key);
  const bool fits = value != nullptr && value->is_number_unsigned() &&
                    value->get<uint64_t>() <= uint64_t{1} << 30;
  LACUNA_CHECK(fits, "{}: {} `{}` is {}, expected a token id", who_, what_, key,
               value == nullptr ? "missing" : shown_json(*value));
  return static_cast<int32_t>(value->get<uint64_t>());
}

bool HostileObject::flag(const char* key, bool absent) const {
  const nlohmann::json* value = find(key);
  if (value == nullptr) return absent;
  LACUNA_CHECK(value->is_boolean(), "{}: {} `{}` is {}, expected true or false", who_, what_, key,
               shown_json(*value));
  return value->get<bool>();
}

}  // namespace lacuna
