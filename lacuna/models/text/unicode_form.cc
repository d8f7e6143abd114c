// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/text/unicode_form.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <vector>

#include "lacuna/core/error.h"
#include "lacuna/core/utf8.h"
#include "lacuna/models/text/unicode.h"

namespace lacuna {

CharKind char_kind(char32_t c) {
  if (is_white_space(c)) return CharKind::space;
  const utf8proc_category_t category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  if (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO) return CharKind::letter;
  if (category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO) return CharKind::number;
  return CharKind::other;
}

std::string nfc(std::string_view text) {
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
  std::vector<utf8proc_int32_t> points;
  points.reserve(text.size());
  int unused_boundary = 0;
  while (!text.empty()) {
    const CodePoint c = decode_utf8(text);
    text.remove_prefix(static_cast<size_t>(c.length));
    std::array<utf8proc_int32_t, 32> parts;  // the longest canonical decomposition has 4
    const utf8proc_ssize_t count = utf8proc_decompose_char(
        static_cast<utf8proc_int32_t>(c.value), parts.data(),
        static_cast<utf8proc_ssize_t>(parts.size()), options, &unused_boundary);
    LACUNA_CHECK(count >= 0 && count <= static_cast<utf8proc_ssize_t>(parts.size()),
                 "nfc: U+{:04X} has no decomposition", static_cast<uint32_t>(c.value));
    points.insert(points.end(), parts.begin(), parts.begin() + count);
  }
  // The library would put marks in order by exchanging neighbours, which is quadratic.
  const auto mark_class = [](utf8proc_int32_t c) {
    return utf8proc_get_property(c)->combining_class;
  };
  for (auto begin = points.begin(); begin != points.end();) {
    if (mark_class(*begin) == 0) {
      ++begin;
      continue;
    }
    const auto end =
        std::find_if(begin, points.end(), [&](utf8proc_int32_t c) { return mark_class(c) == 0; });
    std::stable_sort(begin, end, [&](utf8proc_int32_t a, utf8proc_int32_t b) {
      return mark_class(a) < mark_class(b);
    });
    begin = end;
  }
  const utf8proc_ssize_t length = utf8proc_normalize_utf32(
      points.data(), static_cast<utf8proc_ssize_t>(points.size()), options);
  LACUNA_CHECK(length >= 0, "nfc: {}", utf8proc_errmsg(length));
  std::string out;
  for (utf8proc_ssize_t i = 0; i < length; ++i) {
    append_utf8(static_cast<char32_t>(points[static_cast<size_t>(i)]), out);
  }
  return out;
}

std::string lowercased(std::string_view text) {
  constexpr char32_t kCapitalIWithDot = 0x130, kDotAbove = 0x307;
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const CodePoint c = decode_utf8(text);
    text.remove_prefix(static_cast<size_t>(c.length));
    if (c.value == kCapitalIWithDot) {
      out += 'i';
      append_utf8(kDotAbove, out);
    } else {
      const utf8proc_int32_t lower = utf8proc_tolower(static_cast<utf8proc_int32_t>(c.value));
      append_utf8(static_cast<char32_t>(lower), out);
    }
  }
  return out;
}

}  // namespace lacuna
