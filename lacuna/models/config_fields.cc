// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/config_fields.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "lacuna/core/error.h"

namespace lacuna {
namespace {

using Json = nlohmann::json;

// Nested values are only named: dumping recurses, and a hostile file may nest very deeply.
std::string show(const Json& value) {
  const auto flat = [](const Json& part) { return !part.is_structured(); };
  constexpr size_t kMaxShown = 8;
  if (value.is_object()) return "an object";
  if (value.is_array() &&
      (value.size() > kMaxShown || !std::all_of(value.begin(), value.end(), flat))) {
    return "an array";
  }
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return text;
}

}  // namespace

ConfigFields::ConfigFields(std::string_view json, std::string_view who, std::string_view what)
    : who_(who) {
  constexpr size_t kMaxBytes = 1 << 20;
  LACUNA_CHECK(json.size() <= kMaxBytes, "{}: {} bytes, expected at most {}", who, json.size(),
               kMaxBytes);
  json_ = std::make_unique<Json>(
      Json::parse(json.begin(), json.end(), nullptr, /*allow_exceptions=*/false));
  LACUNA_CHECK(json_->is_object(), "{}: not a JSON object, expected {}", who, what);
}

ConfigFields::~ConfigFields() = default;

const Json* ConfigFields::find(const std::string& key) const {
  const auto it = json_->find(key);
  return it == json_->end() || it->is_null() ? nullptr : &*it;
}

void ConfigFields::read_int(const std::string& key, int64_t& into, bool required) const {
  const Json* value = find(key);
  if (value == nullptr) {
    LACUNA_CHECK(!required, "{}: no `{}`, expected an integer", who_, key);
    return;
  }
  into = integer(*value, key);
}

void ConfigFields::read_number(const std::string& key, double& into) const {
  const Json* value = find(key);
  if (value == nullptr) return;
  LACUNA_CHECK(value->is_number(), "{}: `{}` is {}, expected a number", who_, key, show(*value));
  into = value->get<double>();
}

void ConfigFields::read_bool(const std::string& key, bool& into) const {
  const Json* value = find(key);
  if (value == nullptr) return;
  LACUNA_CHECK(value->is_boolean(), "{}: `{}` is {}, expected true or false", who_, key,
               show(*value));
  into = value->get<bool>();
}

void ConfigFields::read_ints(const std::string& key, std::span<int64_t> into) const {
  const Json* value = find(key);
  if (value == nullptr) return;
  LACUNA_CHECK(value->is_array() && value->size() == into.size(),
               "{}: `{}` is {}, expected {} integers", who_, key, show(*value), into.size());
  for (size_t i = 0; i < into.size(); ++i)
    into[i] = integer((*value)[i], fmt::format("{}[{}]", key, i));
}

void ConfigFields::allow_only(const std::string& key,
                              std::initializer_list<std::string_view> allowed) const {
  const Json* value = find(key);
  if (value == nullptr) return;
  const std::string given = show(*value);
  std::string list;
  for (const std::string_view text : allowed) {
    if (given == text) return;
    list += (list.empty() ? "" : " or ") + std::string(text);
  }
  fail("{}: `{}` is {}, not supported, expected {}", who_, key, given,
       list.empty() ? "null or no such field" : list);
}

int64_t ConfigFields::integer(const Json& value, const std::string& key) const {
  const bool fits = value.is_number_integer() &&
                    (!value.is_number_unsigned() || value.get<uint64_t>() <= uint64_t{1} << 62);
  LACUNA_CHECK(fits, "{}: `{}` is {}, expected an integer", who_, key, show(value));
  return value.get<int64_t>();
}

}  // namespace lacuna
