// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/text/bpe_tokenizer.h"

#include <utility>

#include "lacuna/core/error.h"
#include "lacuna/core/utf8.h"
#include "lacuna/models/text/unicode_form.h"

namespace lacuna {
namespace {

// GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes for U+0100 and up in
// order.
std::array<std::string, 256> byte_alphabet() {
  std::array<std::string, 256> texts;
  char32_t next = 0x100;
  for (char32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad);
    append_utf8(printable ? byte : next++, texts[byte]);
  }
  return texts;
}

// Every run of white space becomes one space.
std::string one_space(std::string_view text) {
  std::string out;
  bool in_run = false;
  while (!text.empty()) {
    const CodePoint c = decode_utf8(text);
    const auto length = static_cast<size_t>(c.length);
    const bool space = char_kind(c.value) == CharKind::space;
    if (!space) out += text.substr(0, length);
    if (space && !in_run) out += ' ';
    in_run = space;
    text.remove_prefix(length);
  }
  return out;
}

std::vector<std::string> words_of(std::string_view text, const BpeRules& rules) {
  std::vector<std::string> words = {std::string(text)};
  const auto cut = [&](SplitPattern pattern) {
    std::vector<std::string> parts;
    for (const std::string& word : words) {
      for (const std::string_view part : split_words(word, pattern)) parts.emplace_back(part);
    }
    words = std::move(parts);
  };
  for (const SplitPattern pattern : rules.splits) cut(pattern);
  if (rules.add_prefix_space) {
    for (std::string& word : words) {
      if (!word.starts_with(' ')) word.insert(word.begin(), ' ');
    }
  }
  if (rules.gpt2_split) cut(SplitPattern::gpt2);
  return words;
}

}  // namespace

BpeTokenizer::BpeTokenizer(BpeModel model)
    : model_(std::move(model)), byte_texts_(byte_alphabet()) {
  model_.validate("tokenizer");
  for (size_t i = 0; i < byte_texts_.size(); ++i) {
    byte_ids_[i] = model_.vocabulary.find(byte_texts_[i]);
    last_byte_ids_[i] = model_.vocabulary.find(byte_texts_[i] + model_.end_of_word_suffix);
  }
  std::vector<AddedToken> raw, after;
  for (AddedToken token : model_.added) {
    if (!token.normalized) {
      raw.push_back(std::move(token));
      continue;
    }
    token.text = normalized(token.text);
    if (!token.text.empty()) after.push_back(std::move(token));
  }
  raw_tokens_ = TokenFinder(std::move(raw));
  normalized_tokens_ = TokenFinder(std::move(after));
}

BpeTokenizer BpeTokenizer::from_file(const std::filesystem::path& path) {
  return BpeTokenizer(read_bpe_model(path));
}

std::string BpeTokenizer::normalized(std::string_view text) const {
  std::string out(text);
  for (const BpeRules::Normalizer step : model_.rules.normalizer) {
    switch (step) {
      case BpeRules::Normalizer::nfc:
        out = nfc(out);
        break;
      case BpeRules::Normalizer::lowercase:
        out = lowercased(out);
        break;
      case BpeRules::Normalizer::one_space:
        out = one_space(out);
        break;
    }
  }
  return out;
}

void BpeTokenizer::encode_word(std::string_view word, std::vector<int32_t>& ids) const {
  if (model_.ignore_merges) {
    std::string text;
    for (const char c : word) text += byte_texts_[static_cast<uint8_t>(c)];
    if (const int32_t id = model_.vocabulary.find(text); id >= 0) {
      ids.push_back(id);
      return;
    }
  }
  std::vector<int32_t> symbols;
  symbols.reserve(word.size());
  bool after_unknown = false;
  for (size_t i = 0; i < word.size(); ++i) {
    const auto& table = i + 1 == word.size() ? last_byte_ids_ : byte_ids_;
    const int32_t id = table[static_cast<uint8_t>(word[i])];
    if (id >= 0) {
      symbols.push_back(id);
    } else if (model_.unk_id >= 0 && !(after_unknown && model_.fuse_unk)) {
      symbols.push_back(model_.unk_id);
    }
    after_unknown = id < 0;
  }
  model_.merges.apply(symbols);
  ids.insert(ids.end(), symbols.begin(), symbols.end());
}

void BpeTokenizer::encode_stretch(std::string_view text, std::vector<int32_t>& ids) const {
  const std::string clean = normalized(text);
  for (const TokenFinder::Part& part : normalized_tokens_.split(clean)) {
    if (part.token != nullptr) {
      ids.push_back(part.token->id);
      continue;
    }
    for (const std::string& word : words_of(part.text, model_.rules)) encode_word(word, ids);
  }
}

std::vector<int32_t> BpeTokenizer::encode(std::string_view text) const {
  LACUNA_CHECK(text.size() <= kMaxTextBytes, "prompt: {} bytes, expected at most {}", text.size(),
               kMaxTextBytes);
  const std::string repaired = repaired_utf8(text);
  std::vector<int32_t> ids;
  for (const TokenFinder::Part& part : raw_tokens_.split(repaired)) {
    if (part.token != nullptr) {
      ids.push_back(part.token->id);
    } else {
      encode_stretch(part.text, ids);
    }
  }
  return ids;
}

std::vector<int32_t> BpeTokenizer::encode_with_special(std::string_view text,
                                                       int64_t max_len) const {
  const auto around = static_cast<int64_t>(model_.prefix.size() + model_.suffix.size());
  LACUNA_CHECK(max_len >= around, "tokenizer: max_len {}, expected at least {}", max_len, around);
  std::vector<int32_t> ids = encode(text);
  const int64_t room = max_len - around;
  if (static_cast<int64_t>(ids.size()) > room) ids.resize(static_cast<size_t>(room));
  ids.insert(ids.begin(), model_.prefix.begin(), model_.prefix.end());
  ids.insert(ids.end(), model_.suffix.begin(), model_.suffix.end());
  return ids;
}

std::optional<int32_t> BpeTokenizer::token_id(std::string_view token) const {
  for (const AddedToken& added : model_.added) {
    if (added.text == token) return added.id;
  }
  const int32_t id = model_.vocabulary.find(token);
  return id >= 0 ? std::optional(id) : std::nullopt;
}

}  // namespace lacuna
