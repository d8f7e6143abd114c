// SPDX-License-Identifier: Apache-2.0
// The little of Unicode that prompts need.
#pragma once

#include <cstddef>
#include <string_view>

namespace lacuna {

// Unicode White_Space.
bool is_white_space(char32_t c);
// White_Space and the separators U+001C..U+001F, which Python counts too.
bool is_python_space(char32_t c);

// Bytes of the first grapheme cluster of non-empty well-formed text, by rules GB3 to GB5, GB9 and
// GB9a of UAX 29. The others (Hangul, flags, emoji, conjuncts) only join characters into clusters
// of six bytes and more, which character maps treat character by character anyway; GB9b (prepended
// marks) concerns characters that no character map has as a key.
size_t grapheme_length(std::string_view text);

}  // namespace lacuna
