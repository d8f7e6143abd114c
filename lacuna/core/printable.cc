// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/printable.h"

#include <fmt/format.h>

#include "lacuna/core/utf8.h"

namespace lacuna {
namespace {

bool is_obeyed(char32_t c) {
  return c < 0x20 || (c >= 0x7f && c < 0xa0) || (c >= 0x2028 && c <= 0x202e) ||
         (c >= 0x2066 && c <= 0x2069) || c == 0x061c || c == 0x200e || c == 0x200f;
}

std::string escape_of(char32_t c) {
  if (c == '\n') return "\\n";
  if (c == '\r') return "\\r";
  if (c == '\t') return "\\t";
  const auto code = static_cast<uint32_t>(c);
  return code < 0x80 ? fmt::format("\\x{:02x}", code) : fmt::format("\\u{:04x}", code);
}

std::string escaped(std::string_view text, std::string_view kept) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const CodePoint c = decode_utf8(text);
    const std::string_view bytes = text.substr(0, static_cast<size_t>(c.length));
    if (c.value == 0xfffd && c.length == 1) {
      out += fmt::format("\\x{:02x}", static_cast<uint8_t>(text.front()));
    } else if (is_obeyed(c.value) && kept.find(text.front()) == std::string_view::npos) {
      out += escape_of(c.value);
    } else {
      out += bytes;
    }
    text.remove_prefix(bytes.size());
  }
  return out;
}

}  // namespace

std::string printable(std::string_view text) {
  return escaped(text, "\n\t");
}

std::string one_line(std::string_view text) {
  return escaped(text, "");
}

}  // namespace lacuna
