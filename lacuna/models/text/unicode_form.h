// SPDX-License-Identifier: Apache-2.0
// Unicode properties and forms that byte-pair tokenizers ask for, of Unicode 15 (utf8proc).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace lacuna {

// What regular expressions call \p{L}, \p{N} and \s; no character is two of them.
enum class CharKind : uint8_t { other, letter, number, space };
CharKind char_kind(char32_t c);

// Normalization form C of well-formed text, in O(n log n) however many marks follow a letter.
std::string nfc(std::string_view text);

// Well-formed text in lower case, character by character: no rule looks at neighbours (a final
// sigma stays U+03C3), and U+0130 alone becomes two characters.
std::string lowercased(std::string_view text);

}  // namespace lacuna
