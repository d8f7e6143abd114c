// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/text/unigram_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <unordered_set>

#include "lacuna/core/error.h"
#include "lacuna/core/utf8.h"

namespace lacuna {
namespace {

constexpr size_t kMaxPieceBytes = 512;
constexpr size_t kMaxAdded = 4096;

// Protobuf wire format, as much as the writer needs.
void put_varint(uint64_t value, std::string& out) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<char>(value | 0x80));
  out.push_back(static_cast<char>(value));
}

void put_int(uint32_t field, uint64_t value, std::string& out) {
  put_varint(field << 3, out);
  put_varint(value, out);
}

void put_bytes(uint32_t field, std::string_view value, std::string& out) {
  put_varint(field << 3 | 2, out);
  put_varint(value.size(), out);
  out += value;
}

void put_float(uint32_t field, float value, std::string& out) {
  put_varint(field << 3 | 5, out);
  const auto bits = std::bit_cast<uint32_t>(value);
  for (int shift = 0; shift < 32; shift += 8) out.push_back(static_cast<char>(bits >> shift));
}

// A character map without keys. Given none at all, the library logs to stderr that it has none.
std::string empty_charsmap() {
  constexpr size_t kTrieBytes = 1024;  // 256 units without children
  std::string blob = {0, 4, 0, 0};
  blob.resize(4 + kTrieBytes + 1, '\0');
  return blob;
}

}  // namespace

int32_t UnigramModel::vocab_size() const {
  auto size = static_cast<int32_t>(pieces.size());
  for (const AddedToken& token : added) size = std::max(size, token.id + 1);
  return size;
}

void UnigramModel::validate(std::string_view who) const {
  LACUNA_CHECK(!pieces.empty() && pieces.size() <= kMaxPieces, "{}: {} pieces, expected 1 to {}",
               who, pieces.size(), kMaxPieces);
  size_t user_defined = 0;  // looked for at every position, so their number is limited
  std::unordered_set<std::string_view> seen;
  seen.reserve(pieces.size());
  for (size_t i = 0; i < pieces.size(); ++i) {
    const Piece& piece = pieces[i];
    const bool sound = !piece.text.empty() && piece.text.size() <= kMaxPieceBytes &&
                       piece.text.find('\0') == std::string::npos && is_valid_utf8(piece.text);
    LACUNA_CHECK(sound, "{}: piece {} of {} bytes, expected 1 to {} of UTF-8 without NUL", who, i,
                 piece.text.size(), kMaxPieceBytes);
    LACUNA_CHECK(std::fabs(piece.score) <= 1e6f, "{}: piece {} has score {}, expected finite", who,
                 i, piece.score);
    user_defined += piece.type == PieceType::user_defined ? 1 : 0;
    LACUNA_CHECK(seen.insert(piece.text).second, "{}: piece {} occurs twice", who, i);
  }
  LACUNA_CHECK(user_defined <= kMaxAdded, "{}: {} user-defined pieces, expected at most {}", who,
               user_defined, kMaxAdded);
  const auto count = static_cast<int64_t>(pieces.size());
  LACUNA_CHECK(unk_id >= 0 && unk_id < count, "{}: unknown token id {}, expected 0 to {}", who,
               unk_id, count - 1);
  LACUNA_CHECK(eos_id >= 0 && eos_id < count, "{}: no piece `</s>`, expected one to end prompts",
               who);
  LACUNA_CHECK(added.size() <= kMaxAdded, "{}: {} added tokens, expected at most {}", who,
               added.size(), kMaxAdded);
  for (const AddedToken& token : added) {
    LACUNA_CHECK(
        !token.text.empty() && token.text.size() <= kMaxPieceBytes && is_valid_utf8(token.text),
        "{}: added token {} of {} bytes, expected 1 to {} of UTF-8", who, token.id,
        token.text.size(), kMaxPieceBytes);
    LACUNA_CHECK(token.id >= 0 && token.id < static_cast<int32_t>(kMaxPieces),
                 "{}: an added token has id {}, expected 0 to {}", who, token.id, kMaxPieces - 1);
  }
}

std::string UnigramModel::segmenter_proto() const {
  const bool literal = std::holds_alternative<HuggingFaceRules>(rules);
  std::string out, message;
  for (size_t i = 0; i < pieces.size(); ++i) {
    PieceType type = literal ? PieceType::normal : pieces[i].type;
    if (type == PieceType::byte || type == PieceType::unknown) type = PieceType::control;
    if (static_cast<int32_t>(i) == unk_id) type = PieceType::unknown;
    message.clear();
    put_bytes(1, pieces[i].text, message);
    put_float(2, pieces[i].score, message);
    put_int(3, static_cast<uint64_t>(type), message);
    put_bytes(1, message, out);  // ModelProto.pieces
  }
  message.clear();
  put_int(3, 1, message);  // TrainerSpec.model_type = UNIGRAM
  put_int(40, static_cast<uint64_t>(unk_id), message);
  put_bytes(45, pieces[static_cast<size_t>(unk_id)].text, message);
  put_bytes(2, message, out);  // ModelProto.trainer_spec
  message.clear();
  put_bytes(1, "identity", message);
  put_bytes(2, empty_charsmap(), message);
  put_int(3, 0, message);      // NormalizerSpec.add_dummy_prefix
  put_int(4, 0, message);      // remove_extra_whitespaces
  put_int(5, 1, message);      // escape_whitespaces
  put_bytes(3, message, out);  // ModelProto.normalizer_spec
  return out;
}

UnigramModel unigram_from_gguf(GgufVocabulary vocabulary, std::string_view who) {
  const size_t count = vocabulary.tokens.size();
  LACUNA_CHECK(vocabulary.scores.size() == count && vocabulary.token_types.size() == count,
               "{}: {} tokens, {} scores, {} token types, expected as many of each", who, count,
               vocabulary.scores.size(), vocabulary.token_types.size());
  UnigramModel model;
  model.rules =
      SentencePieceRules{vocabulary.add_space_prefix, vocabulary.remove_extra_whitespaces};
  model.charsmap = Charsmap(vocabulary.precompiled_charsmap, who);
  model.pieces.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    const int32_t type = vocabulary.token_types[i];
    LACUNA_CHECK(type >= 1 && type <= 6, "{}: token {} has type {}, expected 1 to 6", who, i, type);
    const auto id = static_cast<int32_t>(i);
    Piece piece{std::move(vocabulary.tokens[i]), vocabulary.scores[i],
                static_cast<PieceType>(type)};
    if (piece.type == PieceType::unknown && model.unk_id < 0) model.unk_id = id;
    if (piece.text == "</s>") model.eos_id = id;
    const bool sentinel = piece.text.starts_with("<extra_id_") && piece.text.ends_with(">");
    const bool special = piece.text == "</s>" || piece.text == "<pad>" || piece.text == "<unk>";
    if (sentinel || special) model.added.push_back({piece.text, id, sentinel, sentinel, false});
    model.pieces.push_back(std::move(piece));
  }
  if (vocabulary.eos_token_id) {
    const int64_t eos = *vocabulary.eos_token_id;
    LACUNA_CHECK(eos >= 0 && eos < static_cast<int64_t>(count),
                 "{}: end-of-sequence id {}, expected 0 to {}", who, eos, count);
    model.eos_id = static_cast<int32_t>(eos);
  }
  model.validate(who);
  return model;
}

}  // namespace lacuna
