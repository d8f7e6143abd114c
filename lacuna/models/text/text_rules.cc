// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/text/text_rules.h"

#include <algorithm>
#include <utility>

#include "lacuna/core/error.h"
#include "lacuna/core/utf8.h"
#include "lacuna/models/text/unicode.h"

namespace lacuna {
namespace {

void check_growth(const std::string& text) {
  LACUNA_CHECK(text.size() <= kMaxNormalizedBytes,
               "tokenizer: prompt grows past {} bytes when normalised, expected less (hostile "
               "tokenizer file?)",
               kMaxNormalizedBytes);
}

std::string_view without_leading_space(std::string_view text) {
  while (!text.empty()) {
    const CodePoint c = decode_utf8(text);
    if (!is_white_space(c.value)) break;
    text.remove_prefix(static_cast<size_t>(c.length));
  }
  return text;
}

std::string_view without_trailing_space(std::string_view text) {
  size_t end = 0;  // behind the last character that is not white space
  for (size_t i = 0; i < text.size();) {
    const CodePoint c = decode_utf8(text.substr(i));
    i += static_cast<size_t>(c.length);
    if (!is_white_space(c.value)) end = i;
  }
  return text.substr(0, end);
}

// Every `pattern` (or with `runs` every run of two and more) becomes `content`.
std::string replaced(std::string_view text, const HuggingFaceRules::Step& step) {
  std::string out;
  while (!text.empty()) {
    size_t count = 0;
    const size_t size = step.pattern.size();
    while (text.substr(count * size).starts_with(step.pattern)) {
      ++count;
      if (!step.runs) break;
    }
    const bool match = count >= (step.runs ? 2u : 1u);
    const size_t used = match ? count * size : 1;
    out += match ? std::string_view(step.content) : text.substr(0, 1);
    text.remove_prefix(used);
    check_growth(out);
  }
  return out;
}

// Metaspace: spaces to U+2581, one in front, cut before each.
void append_metaspace_words(std::string_view text, bool prefix, bool split,
                            std::vector<std::string>& words) {
  if (text.empty()) return;
  std::string word;
  if (prefix && !text.starts_with(kSpaceSymbol) && !text.starts_with(' ')) word = kSpaceSymbol;
  while (!text.empty()) {
    const bool space = text.starts_with(' ');
    const bool symbol = space || text.starts_with(kSpaceSymbol);
    if (symbol && split && !word.empty()) words.push_back(std::exchange(word, {}));
    if (symbol) {
      word += kSpaceSymbol;
      text.remove_prefix(space ? 1 : kSpaceSymbol.size());
    } else {
      word += text.front();
      text.remove_prefix(1);
    }
  }
  words.push_back(std::move(word));
}

}  // namespace

TokenFinder::TokenFinder(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  const auto first_byte = [](const AddedToken& t) { return static_cast<uint8_t>(t.text[0]); };
  std::stable_sort(tokens_.begin(), tokens_.end(), [&](const AddedToken& a, const AddedToken& b) {
    return std::pair(first_byte(a), b.text.size()) < std::pair(first_byte(b), a.text.size());
  });
  for (const AddedToken& token : tokens_) ++begin_[first_byte(token) + 1u];
  for (size_t i = 1; i < begin_.size(); ++i) begin_[i] += begin_[i - 1];
}

const AddedToken* TokenFinder::at_start(std::string_view text) const {
  if (text.empty()) return nullptr;
  const size_t byte = static_cast<uint8_t>(text[0]);
  for (size_t i = begin_[byte]; i < begin_[byte + 1]; ++i) {
    if (text.starts_with(tokens_[i].text)) return &tokens_[i];
  }
  return nullptr;
}

std::vector<TokenFinder::Part> TokenFinder::split(std::string_view text) const {
  std::vector<Part> parts;
  const auto put_text = [&](std::string_view stretch) {
    if (!stretch.empty()) parts.push_back({stretch, nullptr});
  };
  size_t begin = 0;  // of the current stretch
  for (size_t i = 0; i < text.size();) {
    const AddedToken* token = at_start(text.substr(i));
    if (token == nullptr) {
      ++i;
      continue;
    }
    std::string_view before = text.substr(begin, i - begin);
    if (token->lstrip) before = without_trailing_space(before);
    put_text(before);
    parts.push_back({token->text, token});
    i += token->text.size();
    if (token->rstrip) i = text.size() - without_leading_space(text.substr(i)).size();
    begin = i;
  }
  put_text(text.substr(begin));
  return parts;
}

std::string sentencepiece_text(std::string_view text, const Charsmap& charsmap,
                               const TokenFinder& user_symbols, const SentencePieceRules& rules) {
  const bool nothing = text.empty();
  std::string out;
  // Starting as if behind a space also drops leading spaces.
  bool after_space = rules.remove_extra_whitespaces;
  while (!text.empty()) {
    auto used = static_cast<size_t>(decode_utf8(text).length);
    std::string_view chunk = text.substr(0, used);
    if (const AddedToken* symbol = user_symbols.at_start(text)) {
      used = symbol->text.size();
      chunk = text.substr(0, used);
    } else if (const auto match = charsmap.longest(text)) {
      used = match->length;
      chunk = match->replacement;
    }
    text.remove_prefix(used);
    while (after_space && chunk.starts_with(' ')) chunk.remove_prefix(1);
    for (const char c : chunk) {
      if (c == ' ') {
        out += kSpaceSymbol;
      } else {
        out += c;
      }
    }
    if (!chunk.empty()) after_space = rules.remove_extra_whitespaces && chunk.ends_with(' ');
    check_growth(out);
  }
  if (nothing || (out.empty() && rules.remove_extra_whitespaces)) return out;
  if (rules.add_dummy_prefix) out = std::string(kSpaceSymbol) + out;
  while (rules.remove_extra_whitespaces && out.ends_with(kSpaceSymbol)) {
    out.resize(out.size() - kSpaceSymbol.size());
  }
  return out;
}

std::string hugging_face_text(std::string_view text, const Charsmap& charsmap,
                              const HuggingFaceRules& rules) {
  std::string out(text);
  for (const HuggingFaceRules::Step& step : rules.normalizer) {
    switch (step.kind) {
      case HuggingFaceRules::Step::Kind::charsmap:
        out = charsmap.normalize_graphemes(out, kMaxNormalizedBytes);
        break;
      case HuggingFaceRules::Step::Kind::strip: {
        std::string_view kept = out;
        if (step.left) kept = without_leading_space(kept);
        if (step.right) kept = without_trailing_space(kept);
        out = std::string(kept);
        break;
      }
      case HuggingFaceRules::Step::Kind::replace:
        out = replaced(out, step);
        break;
    }
  }
  return out;
}

std::vector<std::string> hugging_face_words(std::string_view text, bool first,
                                            const HuggingFaceRules& rules) {
  using Prefix = HuggingFaceRules::Prefix;
  std::vector<std::string> words;
  const bool prefix = rules.prefix == Prefix::always || (rules.prefix == Prefix::first && first);
  if (!rules.split_white_space) {
    append_metaspace_words(text, prefix, rules.split_words, words);
    return words;
  }
  size_t begin = 0;
  bool at_start = true;
  const auto put_word = [&](size_t end) {
    if (end == begin) return;
    const bool here = rules.prefix == Prefix::first ? prefix && at_start && begin == 0 : prefix;
    append_metaspace_words(text.substr(begin, end - begin), here, rules.split_words, words);
    at_start = false;
  };
  for (size_t i = 0; i < text.size();) {
    const CodePoint c = decode_utf8(text.substr(i));
    const auto length = static_cast<size_t>(c.length);
    if (is_white_space(c.value)) {
      put_word(i);
      begin = i + length;
    }
    i += length;
  }
  put_word(text.size());
  return words;
}

}  // namespace lacuna
