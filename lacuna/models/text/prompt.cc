// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/text/prompt.h"

#include <algorithm>
#include <iterator>

#include "lacuna/core/utf8.h"
#include "lacuna/models/text/html_entities.h"
#include "lacuna/models/text/unicode.h"

namespace lacuna {
namespace {

// Windows-1252 meanings of 0x80..0x9f, which HTML5 gives to these numbers.
constexpr char32_t kWindows1252[] = {
    0x20ac, 0x81,   0x201a, 0x0192, 0x201e, 0x2026, 0x2020, 0x2021, 0x02c6, 0x2030, 0x0160,
    0x2039, 0x0152, 0x8d,   0x017d, 0x8f,   0x90,   0x2018, 0x2019, 0x201c, 0x201d, 0x2022,
    0x2013, 0x2014, 0x02dc, 0x2122, 0x0161, 0x203a, 0x0153, 0x9d,   0x017e, 0x0178};

const HtmlEntity* find_entity(std::string_view name) {
  const auto at = std::lower_bound(
      std::begin(kHtmlEntities), std::end(kHtmlEntities), name,
      [](const HtmlEntity& entity, std::string_view wanted) { return entity.name < wanted; });
  return at != std::end(kHtmlEntities) && at->name == name ? at : nullptr;
}

// Numbers that stand for no character vanish, surrogates and too large ones become U+FFFD.
void append_numbered(char32_t number, std::string& out) {
  if (number == 0 || (number >= 0xd800 && number < 0xe000) || number > 0x10ffff) {
    append_utf8(0xfffd, out);
    return;
  }
  if (number >= 0x80 && number < 0xa0) number = kWindows1252[number - 0x80];
  const bool control =
      (number < 0x20 && number != '\t' && number != '\n' && number != '\f' && number != '\r') ||
      number == 0x7f || (number >= 0x80 && number < 0xa0);
  const bool noncharacter = (number >= 0xfdd0 && number <= 0xfdef) || (number & 0xfffe) == 0xfffe;
  // 0x81, 0x8d, ... are the holes of Windows-1252: kept, as Python keeps them.
  if ((control && number < 0x80) || noncharacter) return;
  append_utf8(number, out);
}

int digit_value(char c, int base) {
  if (c >= '0' && c <= '9') return c - '0';
  if (base == 16 && c >= 'a' && c <= 'f') return c - 'a' + 10;
  return base == 16 && c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

// `text` starts with "&#". Appends the character; returns bytes read, 0 if this is no reference.
size_t read_numbered(std::string_view text, std::string& out) {
  const bool hex = text.size() > 2 && (text[2] == 'x' || text[2] == 'X');
  const int base = hex ? 16 : 10;
  const size_t begin = hex ? 3 : 2;
  size_t i = begin;
  char32_t number = 0;
  for (; i < text.size() && digit_value(text[i], base) >= 0; ++i) {
    const auto digit = static_cast<char32_t>(digit_value(text[i], base));
    number = std::min<char32_t>(number * static_cast<char32_t>(base) + digit, 0x110000);
  }
  if (i == begin) return 0;
  append_numbered(number, out);
  return i < text.size() && text[i] == ';' ? i + 1 : i;
}

// `text` starts with "&" and a name, which is the longest that fits.
size_t read_named(std::string_view text, std::string& out) {
  constexpr size_t kLongest = 32;
  size_t end = 1;
  while (end < text.size() && end <= kLongest &&
         std::string_view("\t\n\f <&#;").find(text[end]) == std::string_view::npos) {
    ++end;
  }
  const std::string_view name = text.substr(1, end - 1);
  if (end < text.size() && text[end] == ';') {
    if (const HtmlEntity* entity = find_entity(name)) {
      append_utf8(entity->code_point, out);
      return end + 1;
    }
  }
  for (size_t size = name.size(); size > 1; --size) {
    const HtmlEntity* entity = find_entity(name.substr(0, size));
    if (entity == nullptr || !entity->bare) continue;
    append_utf8(entity->code_point, out);
    return 1 + size;
  }
  return 0;
}

void append_straightened(char32_t c, std::string& out) {
  if (c == 0x2bc || (c >= 0x2018 && c <= 0x201b)) c = '\'';
  if (c >= 0x201c && c <= 0x201f) c = '"';
  append_utf8(c, out);
}

}  // namespace

std::string unescape_html(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    size_t used = 0;
    if (text.starts_with("&#")) {
      used = read_numbered(text, out);
    } else if (text.starts_with('&')) {
      used = read_named(text, out);
    }
    if (used == 0) {
      out += text.front();
      used = 1;
    }
    text.remove_prefix(used);
  }
  return out;
}

std::string clean_prompt(std::string_view text) {
  std::string straight;
  straight.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const CodePoint c = decode_utf8(text.substr(i));
    append_straightened(c.value, straight);
    i += static_cast<size_t>(c.length);
  }
  const std::string plain = unescape_html(unescape_html(straight));
  std::string out;
  out.reserve(plain.size());
  bool space = false;
  for (size_t i = 0; i < plain.size();) {
    const CodePoint c = decode_utf8(std::string_view(plain).substr(i));
    i += static_cast<size_t>(c.length);
    if (is_python_space(c.value)) {
      space = true;
      continue;
    }
    if (space && !out.empty()) out += ' ';
    space = false;
    append_utf8(c.value, out);
  }
  return out;
}

}  // namespace lacuna
