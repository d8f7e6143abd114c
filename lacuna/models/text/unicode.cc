// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/text/unicode.h"

#include <algorithm>
#include <iterator>
#include <span>

#include "lacuna/models/text/unicode_ranges.h"

namespace lacuna {
namespace {

constexpr CodePoint kMalformed = {0xfffd, 1};

bool contains(std::span<const CodePointRange> ranges, char32_t c) {
  const auto after = std::upper_bound(
      ranges.begin(), ranges.end(), c,
      [](char32_t value, const CodePointRange& range) { return value < range.first; });
  return after != ranges.begin() && c <= std::prev(after)->last;
}

}  // namespace

CodePoint decode_utf8(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  const int32_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4 || text.size() < static_cast<size_t>(length)) return kMalformed;
  char32_t value = lead & (0x7f >> length);
  for (int32_t i = 1; i < length; ++i) {
    if ((byte(static_cast<size_t>(i)) & 0xc0) != 0x80) return kMalformed;
    value = value << 6 | (byte(static_cast<size_t>(i)) & 0x3f);
  }
  static constexpr char32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
  const bool surrogate = value >= 0xd800 && value < 0xe000;
  if (value < kSmallest[length] || value > 0x10ffff || surrogate) return kMalformed;
  return {value, length};
}

void append_utf8(char32_t c, std::string& text) {
  const auto put = [&](char32_t bits) { text.push_back(static_cast<char>(bits)); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xc0 | c >> 6);
    put(0x80 | (c & 0x3f));
  } else if (c < 0x10000) {
    put(0xe0 | c >> 12);
    put(0x80 | (c >> 6 & 0x3f));
    put(0x80 | (c & 0x3f));
  } else {
    put(0xf0 | c >> 18);
    put(0x80 | (c >> 12 & 0x3f));
    put(0x80 | (c >> 6 & 0x3f));
    put(0x80 | (c & 0x3f));
  }
}

bool is_valid_utf8(std::string_view text) {
  while (!text.empty()) {
    const CodePoint c = decode_utf8(text);
    if (c.value == 0xfffd && c.length == 1) return false;
    text.remove_prefix(static_cast<size_t>(c.length));
  }
  return true;
}

std::string repaired_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const CodePoint c = decode_utf8(text);
    append_utf8(c.value, out);
    text.remove_prefix(static_cast<size_t>(c.length));
  }
  return out;
}

bool is_white_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0d) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
         c == 0x3000;
}

bool is_python_space(char32_t c) {
  return is_white_space(c) || (c >= 0x1c && c <= 0x1f);
}

size_t grapheme_length(std::string_view text) {
  const CodePoint first = decode_utf8(text);
  auto length = static_cast<size_t>(first.length);
  if (first.value == '\r') return text.size() > 1 && text[1] == '\n' ? 2 : 1;
  if (contains(kGraphemeControl, first.value)) return length;
  while (length < text.size()) {
    const CodePoint next = decode_utf8(text.substr(length));
    if (!contains(kGraphemeExtend, next.value)) break;
    length += static_cast<size_t>(next.length);
  }
  return length;
}

}  // namespace lacuna
