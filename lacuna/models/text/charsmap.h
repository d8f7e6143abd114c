// SPDX-License-Identifier: Apache-2.0
// SentencePiece's precompiled character map: how prompts are normalised (NFKC and friends).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lacuna {

// Layout (sentencepiece, builder.cc): u32 little-endian byte length of a trie, the trie as a
// Darts-clone double array of u32 units, then NUL-terminated replacements. A key's value is the
// byte offset of its replacement.
//
// The blob is hostile: the readers in SentencePiece and its ports follow it without checking where
// it leads, so it is walked here instead, every step inside the array. That is also what lets both
// readings of the map live side by side:
//   longest              SentencePiece: at each position the longest key wins.
//   normalize_graphemes  Hugging Face tokenizers (`Precompiled`): each grapheme cluster of under
//                        six bytes whose prefix is a key is replaced as a whole by the SHORTEST
//                        such key's value, else each character by its own. So e + circumflex +
//                        acute loses the acute, and Hangul given as jamo is not composed.
class Charsmap {
 public:
  Charsmap() = default;  // the identity
  // An empty blob is the identity. Throws Error naming `who` when the header is inconsistent.
  Charsmap(std::string_view blob, std::string_view who);

  struct Match {
    size_t length;  // bytes of the key
    std::string_view replacement;
  };
  // Longest or shortest key that starts the text. Throws Error when the trie leads outside itself.
  std::optional<Match> longest(std::string_view text) const;
  std::optional<Match> shortest(std::string_view text) const;

  // Takes well-formed UTF-8. Throws Error when the result exceeds max_bytes by far: replacements
  // come from a file.
  std::string normalize_graphemes(std::string_view text, size_t max_bytes) const;

  bool identity() const { return units_.empty(); }

 private:
  std::optional<Match> find(std::string_view text, bool stop_at_first) const;

  std::vector<uint32_t> units_;
  std::string replacements_;
};

}  // namespace lacuna
