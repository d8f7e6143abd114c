// SPDX-License-Identifier: Apache-2.0
// Cuts text into the words that byte-pair merges do not cross.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace lacuna {

// The regular expressions of known tokenizers. A file names one of them by its exact text; scanners
// written for them take its place, so that no expression of a stranger is ever run, and the time is
// linear in the text.
enum class SplitPattern : uint8_t {
  gpt2,
  llama3,
  clip,           // as transformers 4 converts vocab.json and merges.txt
  clip_specials,  // <|startoftext|> and <|endoftext|> in front
};

// The pattern whose regular expression is `regex`, if one is.
std::optional<SplitPattern> find_split_pattern(std::string_view regex);

// Whether the matches leave nothing out. CLIP's leave out white space.
bool covers_all(SplitPattern pattern);

// The matches of the pattern in well-formed text, from left to right.
std::vector<std::string_view> split_words(std::string_view text, SplitPattern pattern);

}  // namespace lacuna
