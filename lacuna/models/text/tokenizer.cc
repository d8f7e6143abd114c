// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/text/tokenizer.h"

#include <fmt/format.h>
#include <sentencepiece_processor.h>

#include <exception>
#include <utility>

#include "lacuna/core/error.h"
#include "lacuna/core/utf8.h"

namespace lacuna {

struct Tokenizer::Segmenter {
  sentencepiece::SentencePieceProcessor processor;
};

namespace {

std::vector<AddedToken> user_symbols(const UnigramModel& model) {
  std::vector<AddedToken> symbols;
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    if (model.pieces[i].type != PieceType::user_defined) continue;
    symbols.push_back({model.pieces[i].text, static_cast<int32_t>(i)});
  }
  return symbols;
}

// Tokens that are looked for before (or after) normalisation; the latter are normalised themselves.
std::vector<AddedToken> added_tokens(const UnigramModel& model, bool normalized) {
  std::vector<AddedToken> tokens;
  size_t bytes = 0;
  const auto* rules = std::get_if<HuggingFaceRules>(&model.rules);
  for (AddedToken token : model.added) {
    if (token.normalized != normalized) continue;
    if (normalized && rules != nullptr) {
      token.text = hugging_face_text(token.text, model.charsmap, *rules);
      if (token.text.empty()) continue;
    }
    bytes += token.text.size();
    LACUNA_CHECK(bytes <= kMaxNormalizedBytes,
                 "tokenizer: added tokens grow past {} bytes when normalised, expected less "
                 "(hostile tokenizer file?)",
                 kMaxNormalizedBytes);
    tokens.push_back(std::move(token));
  }
  return tokens;
}

std::array<int32_t, 256> find_byte_pieces(const UnigramModel& model) {
  std::array<int32_t, 256> ids;
  ids.fill(-1);
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    const std::string& text = model.pieces[i].text;
    if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') continue;
    const auto digit = [](char c) {
      if (c >= '0' && c <= '9') return c - '0';
      return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
    };
    const int high = digit(text[3]), low = digit(text[4]);
    if (high >= 0 && low >= 0) ids[static_cast<size_t>(high * 16 + low)] = static_cast<int32_t>(i);
  }
  return ids;
}

}  // namespace

Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

Tokenizer::Tokenizer(UnigramModel model, std::optional<bool> byte_fallback)
    : model_(std::move(model)), segmenter_(std::make_unique<Segmenter>()) {
  model_.validate("tokenizer");
  byte_ids_ = find_byte_pieces(model_);
  int missing = 0;
  for (const int32_t id : byte_ids_) missing += id < 0 ? 1 : 0;
  LACUNA_CHECK(!byte_fallback.value_or(false) || missing == 0,
               "tokenizer: byte fallback asked for, but {} of 256 byte pieces are missing",
               missing);
  byte_fallback_ = byte_fallback.value_or(model_.byte_fallback.value_or(missing == 0));
  raw_tokens_ = TokenFinder(added_tokens(model_, false));
  normalized_tokens_ = TokenFinder(added_tokens(model_, true));
  user_symbols_ = TokenFinder(user_symbols(model_));
  // The library reports most problems as a status, but its trie builder throws.
  std::string problem;
  try {
    const auto status = segmenter_->processor.LoadFromSerializedProto(model_.segmenter_proto());
    if (!status.ok()) problem = status.ToString();
  } catch (const std::exception& error) {
    problem = error.what();
  }
  LACUNA_CHECK(problem.empty(), "tokenizer: SentencePiece refuses the vocabulary: {}", problem);
}

Tokenizer Tokenizer::from_file(const std::filesystem::path& path,
                               std::optional<bool> byte_fallback) {
  return Tokenizer(read_unigram_model(path), byte_fallback);
}

void Tokenizer::segment(std::string_view text, std::vector<int32_t>& ids) const {
  if (text.empty()) return;
  sentencepiece::ImmutableSentencePieceText result;
  const auto status = segmenter_->processor.Encode(text, result.mutable_proto());
  LACUNA_CHECK(status.ok(), "tokenizer: SentencePiece: {}", status.ToString());
  for (const auto& piece : result.pieces()) {
    const auto id = static_cast<int32_t>(piece.id());
    if (id != model_.unk_id || !byte_fallback_) {
      ids.push_back(id);
      continue;
    }
    // All or nothing, as both references do it.
    const size_t before = ids.size();
    for (const char c : piece.piece()) {
      const int32_t byte_id = byte_ids_[static_cast<uint8_t>(c)];
      if (byte_id < 0) {
        ids.resize(before);
        ids.push_back(id);
        break;
      }
      ids.push_back(byte_id);
    }
  }
}

void Tokenizer::encode_slow(std::string_view text, std::vector<int32_t>& ids) const {
  const auto& rules = std::get<SentencePieceRules>(model_.rules);
  for (const TokenFinder::Part& part : raw_tokens_.split(text)) {
    if (part.token != nullptr) {
      ids.push_back(part.token->id);
    } else {
      segment(sentencepiece_text(part.text, model_.charsmap, user_symbols_, rules), ids);
    }
  }
}

void Tokenizer::encode_fast_segment(std::string_view text, bool first,
                                    const HuggingFaceRules& rules,
                                    std::vector<int32_t>& ids) const {
  const std::string normalized = hugging_face_text(text, model_.charsmap, rules);
  for (const TokenFinder::Part& part : normalized_tokens_.split(normalized)) {
    if (part.token != nullptr) {
      ids.push_back(part.token->id);
      continue;
    }
    const bool at_start = first && part.text.data() == normalized.data();
    for (const std::string& word : hugging_face_words(part.text, at_start, rules)) {
      segment(word, ids);
    }
  }
}

void Tokenizer::encode_fast(std::string_view text, std::vector<int32_t>& ids) const {
  const auto& rules = std::get<HuggingFaceRules>(model_.rules);
  for (const TokenFinder::Part& part : raw_tokens_.split(text)) {
    if (part.token != nullptr) {
      ids.push_back(part.token->id);
    } else {
      encode_fast_segment(part.text, part.text.data() == text.data(), rules, ids);
    }
  }
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, int64_t max_len) const {
  LACUNA_CHECK(text.size() <= kMaxPromptBytes, "prompt: {} bytes, expected at most {}", text.size(),
               kMaxPromptBytes);
  LACUNA_CHECK(max_len >= 1, "tokenizer: max_len {}, expected at least 1", max_len);
  const std::string repaired = repaired_utf8(text);
  const bool slow = std::holds_alternative<SentencePieceRules>(model_.rules);
  std::vector<int32_t> ids;
  if (slow) {
    encode_slow(repaired, ids);
  } else {
    encode_fast(repaired, ids);
  }
  if (static_cast<int64_t>(ids.size()) >= max_len) ids.resize(static_cast<size_t>(max_len - 1));
  if (!slow || ids.empty() || ids.back() != model_.eos_id) ids.push_back(model_.eos_id);
  return ids;
}

}  // namespace lacuna
