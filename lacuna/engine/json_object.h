// SPDX-License-Identifier: Apache-2.0
// Typed, path-naming access to hostile JSON.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace lacuna {

using Json = nlohmann::ordered_json;

// Parses text of at most 16 levels in which no object names a key twice. Throws Error naming `who`.
Json parse_json(std::string_view text, std::string_view who);

// One JSON object. Every getter throws Error `<where>.<key>: <given>, expected ...`; a number must
// be finite and in [min, max].
class JsonObject {
 public:
  // Throws Error when `value` is no object or has a key that is not in `known`. Messages name
  // values by where + separator + key.
  JsonObject(const Json& value, std::string where, std::initializer_list<std::string_view> known,
             char separator = '.');

  bool has(std::string_view key) const { return value_.contains(key); }
  const Json& at(std::string_view key) const;  // any type
  std::string path(std::string_view key) const;

  int64_t integer(std::string_view key, int64_t min, int64_t max) const;
  double number(std::string_view key, double min, double max) const;
  std::string text(std::string_view key, size_t max_size) const;
  const Json& array(std::string_view key, size_t max_size) const;
  std::vector<double> numbers(std::string_view key, size_t max_size, double min, double max) const;
  std::vector<int> indices(std::string_view key, size_t max_size, int max) const;

 private:
  const Json& value_;
  std::string where_;
  char separator_;
};

// The value as a finite number in [min, max] / a whole number in [min, max]. Throws Error naming
// `path`.
double json_number(const Json& value, std::string_view path, double min, double max);
int64_t json_integer(const Json& value, std::string_view path, int64_t min, int64_t max);

}  // namespace lacuna
