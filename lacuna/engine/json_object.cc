// SPDX-License-Identifier: Apache-2.0
#include "lacuna/engine/json_object.h"

#include <algorithm>
#include <set>

#include "lacuna/core/error.h"

namespace lacuna {

namespace {

constexpr int kMaxDepth = 16;

std::string shortened(std::string text, size_t most) {
  return text.size() > most ? text.substr(0, most - 3) + "..." : text;
}

// A short, printable piece of a value for messages.
std::string shown(const Json& value) {
  return shortened(value.dump(-1, ' ', true, Json::error_handler_t::replace), 40);
}

std::string joined(std::initializer_list<std::string_view> names) {
  std::string text;
  for (std::string_view name : names) {
    text += text.empty() ? "" : ", ";
    text += name;
  }
  return text;
}

}  // namespace

Json parse_json(std::string_view text, std::string_view who) {
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  const auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
    LACUNA_CHECK(depth <= kMaxDepth, "{}: nested deeper than {} levels", who, kMaxDepth);
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key)
      LACUNA_CHECK(keys.back().insert(parsed.get<std::string>()).second,
                   "{}: key {} twice in one object", who, shown(parsed));
    return true;
  };
  try {
    return Json::parse(text.begin(), text.end(), watch);
  } catch (const Json::exception& error) {
    // It repeats the token it stopped in, which may be megabytes.
    fail("{}: not JSON: {}", who, shortened(error.what(), 200));
  }
}

double json_number(const Json& value, std::string_view path, double min, double max) {
  LACUNA_CHECK(value.is_number(), "{}: {}, expected a number", path, shown(value));
  const auto number = value.get<double>();
  LACUNA_CHECK(number >= min && number <= max, "{}: {}, expected {} to {}", path, shown(value), min,
               max);
  return number;
}

int64_t json_integer(const Json& value, std::string_view path, int64_t min, int64_t max) {
  // Unsigned values past 2^63 would wrap in get<int64_t>.
  const bool fits = value.is_number_integer() &&
                    (!value.is_number_unsigned() || value.get<uint64_t>() <= uint64_t{INT64_MAX});
  LACUNA_CHECK(fits && value.get<int64_t>() >= min && value.get<int64_t>() <= max,
               "{}: {}, expected a whole number from {} to {}", path, shown(value), min, max);
  return value.get<int64_t>();
}

JsonObject::JsonObject(const Json& value, std::string where,
                       std::initializer_list<std::string_view> known, char separator)
    : value_(value), where_(std::move(where)), separator_(separator) {
  LACUNA_CHECK(value.is_object(), "{}: {}, expected an object", where_, shown(value));
  for (const auto& [key, unused] : value.items())
    LACUNA_CHECK(std::find(known.begin(), known.end(), key) != known.end(),
                 "{}: unknown key {}, expected one of {}", where_, shown(Json(key)), joined(known));
}

std::string JsonObject::path(std::string_view key) const {
  return fmt::format("{}{}{}", where_, separator_, key);
}

const Json& JsonObject::at(std::string_view key) const {
  LACUNA_CHECK(has(key), "{}: missing, expected a value", path(key));
  return *value_.find(key);
}

int64_t JsonObject::integer(std::string_view key, int64_t min, int64_t max) const {
  return json_integer(at(key), path(key), min, max);
}

double JsonObject::number(std::string_view key, double min, double max) const {
  return json_number(at(key), path(key), min, max);
}

std::string JsonObject::text(std::string_view key, size_t max_size) const {
  const Json& value = at(key);
  LACUNA_CHECK(value.is_string() && value.get_ref<const std::string&>().size() <= max_size,
               "{}: {}, expected a string of at most {} bytes", path(key), shown(value), max_size);
  return value.get<std::string>();
}

const Json& JsonObject::array(std::string_view key, size_t max_size) const {
  const Json& value = at(key);
  LACUNA_CHECK(value.is_array() && value.size() <= max_size,
               "{}: {}, expected an array of at most {} values", path(key), shown(value), max_size);
  return value;
}

std::vector<double> JsonObject::numbers(std::string_view key, size_t max_size, double min,
                                        double max) const {
  std::vector<double> result;
  for (const Json& item : array(key, max_size))
    result.push_back(json_number(item, path(key), min, max));
  return result;
}

std::vector<int> JsonObject::indices(std::string_view key, size_t max_size, int max) const {
  std::vector<int> result;
  for (const Json& item : array(key, max_size))
    result.push_back(static_cast<int>(json_integer(item, path(key), 0, max)));
  return result;
}

}  // namespace lacuna
