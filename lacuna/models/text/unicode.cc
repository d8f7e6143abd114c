// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/text/unicode.h"

#include <algorithm>
#include <iterator>
#include <span>

#include "lacuna/core/utf8.h"
#include "lacuna/models/text/unicode_ranges.h"

namespace lacuna {
namespace {

bool contains(std::span<const CodePointRange> ranges, char32_t c) {
  const auto after = std::upper_bound(
      ranges.begin(), ranges.end(), c,
      [](char32_t value, const CodePointRange& range) { return value < range.first; });
  return after != ranges.begin() && c <= std::prev(after)->last;
}

}  // namespace

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
