// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/text/bpe_split.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "lacuna/core/utf8.h"
#include "lacuna/models/text/unicode_form.h"

namespace lacuna {
namespace {

constexpr std::pair<std::string_view, SplitPattern> kSplitPatterns[] = {
    {R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
     SplitPattern::gpt2},
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|)"
     R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     SplitPattern::llama3},
    {R"('s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+)", SplitPattern::clip},
    {R"(<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|)"
     R"([^\s\p{L}\p{N}]+)",
     SplitPattern::clip_specials},
};

// Matches end where these functions say; alternatives are tried in the order of the expression.
class SplitScanner {
 public:
  explicit SplitScanner(std::string_view text) : text_(text) {
    chars_.reserve(text.size());
    for (size_t i = 0; i < text.size();) {
      const CodePoint c = decode_utf8(text.substr(i));
      chars_.push_back({c.value, i, char_kind(c.value)});
      i += static_cast<size_t>(c.length);
    }
  }

  size_t size() const { return chars_.size(); }

  std::string_view between(size_t begin, size_t end) const {
    const size_t first = offset(begin);
    return text_.substr(first, offset(end) - first);
  }

  // End of the match that starts at `begin`; `begin` itself where nothing matches.
  size_t match(SplitPattern pattern, size_t begin) const {
    switch (pattern) {
      case SplitPattern::gpt2:
        return gpt2(begin);
      case SplitPattern::llama3:
        return llama3(begin);
      case SplitPattern::clip:
        return clip(begin);
      case SplitPattern::clip_specials:
        for (const std::string_view special : {"<|startoftext|>", "<|endoftext|>"}) {
          if (text_.substr(offset(begin)).starts_with(special)) return begin + special.size();
        }
        return clip(begin);
    }
    return begin;
  }

 private:
  struct Char {
    char32_t value;
    size_t offset;
    CharKind kind;
  };

  size_t offset(size_t i) const { return i < chars_.size() ? chars_[i].offset : text_.size(); }
  bool is(size_t i, CharKind kind) const { return i < chars_.size() && chars_[i].kind == kind; }
  bool is_line_end(size_t i) const {
    return i < chars_.size() && (chars_[i].value == '\r' || chars_[i].value == '\n');
  }
  // Behind the characters of this kind that start at i.
  size_t run(CharKind kind, size_t i) const {
    while (is(i, kind)) ++i;
    return i;
  }

  // 's 't 're 've 'm 'll 'd; `any_case` as (?i:) means it, which takes U+017F for an s.
  size_t contraction(size_t begin, bool any_case) const {
    if (chars_[begin].value != '\'') return begin;
    const auto letter = [&](size_t i) -> char32_t {
      if (i >= chars_.size()) return 0;
      const char32_t c = chars_[i].value;
      if (!any_case) return c;
      if (c == 0x17f) return 's';
      return c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c;
    };
    const char32_t first = letter(begin + 1), second = letter(begin + 2);
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return begin + 2;
    const bool two = (first == 'r' && second == 'e') || (first == 'v' && second == 'e') ||
                     (first == 'l' && second == 'l');
    return two ? begin + 3 : begin;
  }

  // \s+(?!\S)|\s+ where white space begins: all of a run but its last, which the next word takes.
  size_t white_space(size_t begin) const {
    const size_t end = run(CharKind::space, begin);
    return end == chars_.size() || end == begin + 1 ? end : end - 1;
  }

  size_t gpt2(size_t begin) const {
    if (const size_t end = contraction(begin, false); end != begin) return end;
    const size_t word = begin + (chars_[begin].value == ' ' ? 1 : 0);
    if (word < chars_.size() && !is(word, CharKind::space)) return run(chars_[word].kind, word);
    return white_space(begin);
  }

  size_t llama3(size_t begin) const {
    if (const size_t end = contraction(begin, true); end != begin) return end;
    if (is(begin, CharKind::letter)) return run(CharKind::letter, begin);
    if (is(begin, CharKind::number)) return std::min(run(CharKind::number, begin), begin + 3);
    if (!is_line_end(begin) && is(begin + 1, CharKind::letter)) {
      return run(CharKind::letter, begin + 1);
    }
    const size_t marks = begin + (chars_[begin].value == ' ' ? 1 : 0);
    if (is(marks, CharKind::other)) {
      size_t end = run(CharKind::other, marks);
      while (is_line_end(end)) ++end;
      return end;
    }
    for (size_t end = run(CharKind::space, begin); end > begin; --end) {
      if (is_line_end(end - 1)) return end;
    }
    return white_space(begin);
  }

  size_t clip(size_t begin) const {
    if (const size_t end = contraction(begin, false); end != begin) return end;
    switch (chars_[begin].kind) {
      case CharKind::space:
        return begin;
      case CharKind::number:
        return begin + 1;
      default:
        return run(chars_[begin].kind, begin);
    }
  }

  std::string_view text_;
  std::vector<Char> chars_;
};

}  // namespace

std::optional<SplitPattern> find_split_pattern(std::string_view regex) {
  for (const auto& [known, pattern] : kSplitPatterns) {
    if (known == regex) return pattern;
  }
  return std::nullopt;
}

bool covers_all(SplitPattern pattern) {
  return pattern == SplitPattern::gpt2 || pattern == SplitPattern::llama3;
}

std::vector<std::string_view> split_words(std::string_view text, SplitPattern pattern) {
  const SplitScanner scanner(text);
  std::vector<std::string_view> words;
  for (size_t begin = 0; begin < scanner.size();) {
    const size_t end = scanner.match(pattern, begin);
    if (end != begin) words.push_back(scanner.between(begin, end));
    begin = std::max(end, begin + 1);
  }
  return words;
}

}  // namespace lacuna
