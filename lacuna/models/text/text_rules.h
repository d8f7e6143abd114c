// SPDX-License-Identifier: Apache-2.0
// What happens to prompt text before segmentation: literal tokens, normalisation, white space.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "lacuna/models/text/unigram_model.h"

namespace lacuna {

// Normalised text may not outgrow this: replacements come from files. 64 times what the worst
// character of NFKC (U+FDFA, 33 bytes for 3) makes of the longest prompt would still be hostile.
inline constexpr size_t kMaxNormalizedBytes = size_t{4} << 20;

inline constexpr std::string_view kSpaceSymbol = "\xe2\x96\x81";  // U+2581

// Finds added tokens in text, leftmost first, the longest at each place.
class TokenFinder {
 public:
  TokenFinder() = default;
  explicit TokenFinder(std::vector<AddedToken> tokens);

  // The longest token that starts the text, or null.
  const AddedToken* at_start(std::string_view text) const;

  // Cuts text into plain stretches and tokens, in order, empty stretches left out.
  // lstrip / rstrip tokens swallow white space of their neighbours.
  struct Part {
    std::string_view text;
    const AddedToken* token = nullptr;  // null: plain text
  };
  std::vector<Part> split(std::string_view text) const;

 private:
  std::vector<AddedToken> tokens_;     // by first byte, longest first
  std::array<uint32_t, 257> begin_{};  // of each first byte in tokens_
};

// The functions below throw Error when the result would exceed kMaxNormalizedBytes.

// SentencePiece's Normalizer: character map (user-defined symbols stay as they are), extra spaces
// removed, spaces to U+2581, one in front.
std::string sentencepiece_text(std::string_view text, const Charsmap& charsmap,
                               const TokenFinder& user_symbols, const SentencePieceRules& rules);

// The normalizer of a tokenizer.json.
std::string hugging_face_text(std::string_view text, const Charsmap& charsmap,
                              const HuggingFaceRules& rules);

// Its pre-tokenizer: words that are segmented one by one. `first`: the text starts the prompt.
std::vector<std::string> hugging_face_words(std::string_view text, bool first,
                                            const HuggingFaceRules& rules);

}  // namespace lacuna
