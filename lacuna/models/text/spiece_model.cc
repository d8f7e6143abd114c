// SPDX-License-Identifier: Apache-2.0
// Reader of sentencepiece's ModelProto. It is read here and written anew (segmenter_proto), so that
// nothing unchecked reaches the library, which trusts its files.
#include <fmt/format.h>

#include <bit>

#include "lacuna/core/error.h"
#include "lacuna/models/text/unigram_model.h"

namespace lacuna {
namespace {

constexpr size_t kMaxSpieceBytes = size_t{64} << 20;

enum class Wire : uint8_t { varint = 0, fixed64 = 1, bytes = 2, fixed32 = 5 };

struct Field {
  uint32_t number = 0;
  Wire wire = Wire::varint;
  uint64_t value = 0;      // varint, fixed32, fixed64
  std::string_view bytes;  // length-delimited
};

class MessageReader {
 public:
  MessageReader(std::string_view message, std::string_view who) : rest_(message), who_(who) {}

  // False at the end of the message.
  bool next(Field& field) {
    if (rest_.empty()) return false;
    const uint64_t key = varint();
    field = {static_cast<uint32_t>(key >> 3), static_cast<Wire>(key & 7), 0, {}};
    LACUNA_CHECK(key >> 3 >= 1 && key >> 3 < (1u << 29), "{}: field number {}, expected 1 to 2^29",
                 who_, key >> 3);
    switch (field.wire) {
      case Wire::varint:
        field.value = varint();
        break;
      case Wire::fixed64:
        field.value = fixed(8);
        break;
      case Wire::fixed32:
        field.value = fixed(4);
        break;
      case Wire::bytes: {
        const uint64_t size = varint();
        LACUNA_CHECK(size <= rest_.size(), "{}: field {} of {} bytes, {} left (truncated file?)",
                     who_, field.number, size, rest_.size());
        field.bytes = rest_.substr(0, size);
        rest_.remove_prefix(size);
        break;
      }
      default:
        fail("{}: wire type {}, expected a sentencepiece model", who_, key & 7);
    }
    return true;
  }

  std::string_view bytes_of(const Field& field) const {
    LACUNA_CHECK(field.wire == Wire::bytes, "{}: field {} of another type, expected bytes", who_,
                 field.number);
    return field.bytes;
  }
  uint64_t int_of(const Field& field) const {
    LACUNA_CHECK(field.wire == Wire::varint, "{}: field {} of another type, expected an integer",
                 who_, field.number);
    return field.value;
  }
  float float_of(const Field& field) const {
    LACUNA_CHECK(field.wire == Wire::fixed32, "{}: field {} of another type, expected a float",
                 who_, field.number);
    return std::bit_cast<float>(static_cast<uint32_t>(field.value));
  }

 private:
  uint64_t varint() {
    uint64_t value = 0;
    for (size_t i = 0; i < 10; ++i) {
      LACUNA_CHECK(i < rest_.size(), "{}: ends inside a number (truncated file?)", who_);
      const auto byte = static_cast<uint8_t>(rest_[i]);
      value |= uint64_t{byte & 0x7fu} << (7 * i);
      if (byte < 0x80) {
        rest_.remove_prefix(i + 1);
        return value;
      }
    }
    fail("{}: number of more than 10 bytes, expected a sentencepiece model", who_);
  }

  uint64_t fixed(size_t size) {
    LACUNA_CHECK(rest_.size() >= size, "{}: ends inside a number (truncated file?)", who_);
    uint64_t value = 0;
    for (size_t i = 0; i < size; ++i) {
      value |= uint64_t{static_cast<uint8_t>(rest_[i])} << (8 * i);
    }
    rest_.remove_prefix(size);
    return value;
  }

  std::string_view rest_;
  std::string_view who_;
};

Piece read_piece(std::string_view message, std::string_view who) {
  Piece piece;
  Field field;
  for (MessageReader reader(message, who); reader.next(field);) {
    if (field.number == 1) piece.text = reader.bytes_of(field);
    if (field.number == 2) piece.score = reader.float_of(field);
    if (field.number == 3) {
      const uint64_t type = reader.int_of(field);
      LACUNA_CHECK(type >= 1 && type <= 6, "{}: piece type {}, expected 1 to 6", who, type);
      piece.type = static_cast<PieceType>(type);
    }
  }
  return piece;
}

void read_trainer_spec(std::string_view message, std::string_view who, UnigramModel& model) {
  Field field;
  for (MessageReader reader(message, who); reader.next(field);) {
    if (field.number == 3) {
      const uint64_t type = reader.int_of(field);
      LACUNA_CHECK(type == 1, "{}: model type {}, expected 1 (unigram)", who, type);
    }
    if (field.number == 24) {
      LACUNA_CHECK(reader.int_of(field) == 0, "{}: white space as suffix, expected as prefix", who);
    }
    if (field.number == 35) model.byte_fallback = reader.int_of(field) != 0;
  }
}

void read_normalizer_spec(std::string_view message, std::string_view who, UnigramModel& model) {
  SentencePieceRules rules;
  Field field;
  for (MessageReader reader(message, who); reader.next(field);) {
    if (field.number == 2) model.charsmap = Charsmap(reader.bytes_of(field), who);
    if (field.number == 3) rules.add_dummy_prefix = reader.int_of(field) != 0;
    if (field.number == 4) rules.remove_extra_whitespaces = reader.int_of(field) != 0;
    if (field.number == 5) {
      LACUNA_CHECK(reader.int_of(field) != 0, "{}: unescaped white space, expected escaped", who);
    }
  }
  model.rules = rules;
}

void add_special_tokens(int32_t extra_ids, std::string_view who, UnigramModel& model) {
  const auto count = static_cast<int32_t>(model.pieces.size());
  bool sentinels = false;
  for (int32_t id = 0; id < count; ++id) {
    const Piece& piece = model.pieces[static_cast<size_t>(id)];
    if (piece.text == "</s>") model.eos_id = id;
    const bool sentinel = piece.text.starts_with("<extra_id_") && piece.text.ends_with(">");
    sentinels = sentinels || sentinel;
    const bool special = piece.text == "</s>" || piece.text == "<pad>" || piece.text == "<unk>";
    if (sentinel || special) model.added.push_back({piece.text, id, sentinel, sentinel, false});
    if (piece.type != PieceType::unknown) continue;
    LACUNA_CHECK(model.unk_id < 0, "{}: pieces {} and {} are both unknown, expected one", who,
                 model.unk_id, id);
    model.unk_id = id;
  }
  if (sentinels) return;  // the model brings its own
  for (int32_t i = 0; i < extra_ids; ++i) {
    model.added.push_back(
        {fmt::format("<extra_id_{}>", i), count - 1 + extra_ids - i, true, true, false});
  }
}

}  // namespace

UnigramModel parse_spiece_model(std::string_view bytes, std::string_view who, int32_t extra_ids) {
  LACUNA_CHECK(bytes.size() <= kMaxSpieceBytes, "{}: {} bytes, expected at most {}", who,
               bytes.size(), kMaxSpieceBytes);
  LACUNA_CHECK(extra_ids >= 0 && extra_ids <= 1000, "{}: {} extra ids, expected 0 to 1000", who,
               extra_ids);
  UnigramModel model;
  Field field;
  for (MessageReader reader(bytes, who); reader.next(field);) {
    if (field.number == 1) {  // two bytes of file can be a piece of 40 bytes
      LACUNA_CHECK(model.pieces.size() < kMaxPieces,
                   "{}: more than {} pieces, expected at most so many", who, kMaxPieces);
      model.pieces.push_back(read_piece(reader.bytes_of(field), who));
    }
    if (field.number == 2) read_trainer_spec(reader.bytes_of(field), who, model);
    if (field.number == 3) read_normalizer_spec(reader.bytes_of(field), who, model);
  }
  LACUNA_CHECK(!model.pieces.empty(), "{}: no pieces, expected a sentencepiece model", who);
  add_special_tokens(extra_ids, who, model);
  model.validate(who);
  return model;
}

}  // namespace lacuna
