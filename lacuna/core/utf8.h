// SPDX-License-Identifier: Apache-2.0
// Code points in bytes that may be anything.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace lacuna {

struct CodePoint {
  char32_t value;
  int32_t length;  // bytes consumed, 1..4
};

// First code point of non-empty text. A byte that starts no well-formed sequence (truncated,
// overlong, surrogate, above U+10FFFF) counts as U+FFFD of length 1, as in SentencePiece.
CodePoint decode_utf8(std::string_view text);
void append_utf8(char32_t code_point, std::string& text);
bool is_valid_utf8(std::string_view text);
// Every malformed byte replaced by U+FFFD.
std::string repaired_utf8(std::string_view text);

}  // namespace lacuna
