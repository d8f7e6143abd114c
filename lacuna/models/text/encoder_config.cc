// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/text/encoder_config.h"

#include <algorithm>

#include "lacuna/core/error.h"
#include "lacuna/models/text/hostile_json.h"

namespace lacuna {

using Json = nlohmann::json;

Json parse_encoder_config(std::string_view text, std::string_view who) {
  constexpr size_t kMaxBytes = 1 << 20;
  LACUNA_CHECK(text.size() <= kMaxBytes, "{}: {} bytes, expected at most {}", who, text.size(),
               kMaxBytes);
  Json parsed = parse_hostile_json(text, who);
  LACUNA_CHECK(parsed.is_object(), "{}: not a JSON object, expected a text encoder's config.json",
               who);
  return parsed;
}

int64_t config_int(const Json& config, const char* key, std::string_view who) {
  const auto it = config.find(key);
  LACUNA_CHECK(it != config.end() && it->is_number_integer(), "{}: `{}` {}, expected an integer",
               who, key, it == config.end() ? "missing" : "of another type");
  constexpr int64_t kMost = int64_t{1} << 62;
  LACUNA_CHECK(!it->is_number_unsigned() || it->get<uint64_t>() <= uint64_t{kMost},
               "{}: `{}` too large", who, key);
  return it->get<int64_t>();
}

double config_number(const Json& config, const char* key, double absent, std::string_view who) {
  const auto it = config.find(key);
  if (it == config.end()) return absent;
  LACUNA_CHECK(it->is_number(), "{}: `{}` of another type, expected a number", who, key);
  return it->get<double>();
}

void expect_config(const Json& config, const char* key, const Json& value, std::string_view who) {
  const auto it = config.find(key);
  LACUNA_CHECK(it != config.end(), "{}: `{}` missing, expected {}", who, key, shown_json(value));
  LACUNA_CHECK(*it == value, "{}: `{}` {}, expected {}", who, key, shown_json(*it),
               shown_json(value));
}

void expect_config_if_any(const Json& config, const char* key, const Json& value,
                          std::string_view who) {
  if (config.contains(key)) expect_config(config, key, value, who);
}

void check_config_size(std::string_view who, std::string_view field, int64_t value, int64_t max) {
  LACUNA_CHECK(value >= 1 && value <= max, "{}: {} {}, expected 1 to {}", who, field, value, max);
}

std::vector<std::string> prefixes_of(const WeightSource& source, std::string_view tail) {
  std::vector<std::string> prefixes;
  for (const std::string& name : source.names()) {
    if (name.ends_with(tail)) prefixes.push_back(name.substr(0, name.size() - tail.size()));
  }
  std::stable_sort(prefixes.begin(), prefixes.end(),
                   [](const auto& a, const auto& b) { return a.size() < b.size(); });
  return prefixes;
}

}  // namespace lacuna
