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

}  // namespace lacuna
