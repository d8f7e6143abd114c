// SPDX-License-Identifier: Apache-2.0
// Typed fields of a vae/config.json that a stranger wrote: messages name the file, the key and the
// offending value.
#pragma once

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "lacuna/core/error.h"

namespace lacuna {

class ConfigFields {
 public:
  using Json = nlohmann::json;

  // Both must outlive this.
  ConfigFields(const Json& json, std::string_view where) : json_(json), where_(where) {}

  bool given(const char* key) const { return json_.contains(key); }
  // Given, and not null.
  bool has(const char* key) const { return json_.contains(key) && !json_.at(key).is_null(); }

  int64_t integer(const char* key, int64_t fallback) const {
    if (!has(key)) return fallback;
    return as_integer(json_.at(key), key);
  }

  bool boolean(const char* key, bool fallback) const {
    if (!has(key)) return fallback;
    const Json& value = json_.at(key);
    LACUNA_CHECK(value.is_boolean(), "{}: {} is {}, expected true or false", where_, key,
                 value.type_name());
    return value.get<bool>();
  }

  double number(const char* key, double fallback) const {
    if (!has(key)) return fallback;
    const Json& value = json_.at(key);
    LACUNA_CHECK(value.is_number(), "{}: {} is {}, expected a number", where_, key,
                 value.type_name());
    return value.get<double>();
  }

  // A word that must be one of those that are known.
  void one_of(const char* key, std::initializer_list<std::string_view> known) const {
    if (has(key)) check_word(json_.at(key), key, known);
  }
  void check_word(const Json& value, const char* key,
                  std::initializer_list<std::string_view> known) const {
    LACUNA_CHECK(value.is_string(), "{}: {} is {}, expected a string", where_, key,
                 value.type_name());
    const std::string word = value.get<std::string>();
    std::string all;
    for (const std::string_view name : known) {
      if (word == name) return;
      all.append(all.empty() ? "" : " or ").append(name);
    }
    fail("{}: {} is {}, expected {}", where_, key, word.substr(0, 80), all);
  }

  const Json& list(const char* key, size_t max_size) const {
    const Json& value = json_.at(key);
    LACUNA_CHECK(value.is_array() && value.size() <= max_size,
                 "{}: {} is {}, expected a list of at most {}", where_, key, value.type_name(),
                 max_size);
    return value;
  }

  // Lists of at most 16; `fallback` where the key is absent.
  std::vector<int64_t> integers(const char* key, const std::vector<int64_t>& fallback) const {
    if (!has(key)) return fallback;
    std::vector<int64_t> out;
    for (const Json& value : list(key, 16)) out.push_back(as_integer(value, key));
    return out;
  }

  std::vector<float> floats(const char* key) const {
    std::vector<float> out;
    for (const Json& value : list(key, 4096)) {
      LACUNA_CHECK(value.is_number(), "{}: {} holds a {}, expected numbers", where_, key,
                   value.type_name());
      out.push_back(value.get<float>());
    }
    return out;
  }

  void in_range(const char* key, int64_t value, int64_t low, int64_t high) const {
    LACUNA_CHECK(value >= low && value <= high, "{}: {} is {}, expected {} to {}", where_, key,
                 value, low, high);
  }
  // Fields that say again what follows from others, or that one value is supported of.
  void must_be(const char* key, int64_t expected) const {
    const int64_t given = integer(key, expected);
    LACUNA_CHECK(given == expected, "{}: {} is {}, expected {}", where_, key, given, expected);
  }

 private:
  int64_t as_integer(const Json& value, const char* key) const {
    // An unsigned number beyond int64_t would wrap.
    LACUNA_CHECK(value.is_number_integer() &&
                     (!value.is_number_unsigned() || value.get<uint64_t>() <= uint64_t{INT64_MAX}),
                 "{}: {} is {}, expected an integer", where_, key, value.type_name());
    return value.get<int64_t>();
  }

  const Json& json_;
  std::string_view where_;
};

// A JSON object, or Error.
inline nlohmann::json parse_vae_object(std::string_view text, std::string_view where) {
  nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  LACUNA_CHECK(json.is_object(), "{}: not a JSON object, expected a VAE config.json", where);
  return json;
}

}  // namespace lacuna
