// SPDX-License-Identifier: Apache-2.0
// A unigram vocabulary and its text rules, read from spiece.model, tokenizer.json or GGUF. All
// three are hostile: whatever passes validate() is safe to hand to the SentencePiece library.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "lacuna/models/text/charsmap.h"

namespace lacuna {

// Numbers of sentencepiece_model.proto, which GGUF shares.
enum class PieceType : uint8_t { normal = 1, unknown, control, user_defined, unused, byte };

struct Piece {
  std::string text;  // with U+2581 for spaces
  float score = 0.0f;
  PieceType type = PieceType::normal;
};

// A string that becomes one id wherever it stands literally in a prompt.
struct AddedToken {
  std::string text;
  int32_t id = 0;
  bool lstrip = false, rstrip = false;  // swallow white space before / after
  bool normalized = false;              // looked for after normalisation instead of before
};

// As SentencePiece, and thus transformers' slow T5 tokenizer, treats a prompt.
struct SentencePieceRules {
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
};

// As the `tokenizers` library, and thus transformers' fast tokenizers, treats a prompt.
struct HuggingFaceRules {
  struct Step {
    enum class Kind : uint8_t { charsmap, strip, replace } kind = Kind::charsmap;
    bool left = false, right = false;  // strip
    std::string pattern, content;      // replace every `pattern` ...
    bool runs = false;                 // ... or every run of at least two of it, by `content`
  };
  enum class Prefix : uint8_t { always, first, never };

  std::vector<Step> normalizer;
  bool split_white_space = false;  // WhitespaceSplit in front of Metaspace (transformers 5)
  Prefix prefix = Prefix::always;  // U+2581 in front of each segment
  bool split_words = true;         // segment each U+2581 word on its own
};

// UMT5 has 256,000.
inline constexpr size_t kMaxPieces = size_t{1} << 21;

struct UnigramModel {
  std::vector<Piece> pieces;  // index = id
  int32_t unk_id = -1;
  int32_t eos_id = -1;
  Charsmap charsmap;
  std::vector<AddedToken> added;
  std::variant<SentencePieceRules, HuggingFaceRules> rules;
  std::optional<bool> byte_fallback;  // as the file says, if it does

  // Ids run below this; added tokens may lie past the pieces.
  int32_t vocab_size() const;
  // Throws Error naming `who` unless: 1 to 2^21 pieces, each 1 to 512 bytes of well-formed UTF-8
  // without NUL, unique, with a finite score within +-10^6; unk_id and eos_id are pieces; added
  // tokens (at most 4096) non-empty with ids in range.
  void validate(std::string_view who) const;
  // A sentencepiece ModelProto with these pieces and no text rules: segmentation only. Byte pieces
  // are passed as control pieces, because fallback is done here (the library's switch is part of
  // the file). Hugging Face vocabularies match every piece literally, so there all are normal.
  std::string segmenter_proto() const;
};

// `spiece.model`. T5 tokenizers put `extra_ids` sentinels <extra_id_0> .. behind the pieces, the
// highest id being <extra_id_0>; UMT5 has 300, T5 100. They, <pad>, </s> and <unk> are added
// tokens, as in transformers' slow tokenizer. Throws Error naming `who`.
UnigramModel parse_spiece_model(std::string_view bytes, std::string_view who,
                                int32_t extra_ids = 300);

// `tokenizer.json` of a Unigram model. Supported: normalizers Precompiled, Strip, Replace,
// Sequence; pre-tokenizers Metaspace, WhitespaceSplit, Sequence. Others, and single-word added
// tokens, are refused by name. Throws Error naming `who`.
UnigramModel parse_tokenizer_json(std::string_view text, std::string_view who);

// `tokenizer.ggml.*` of a GGUF file whose tokenizer.ggml.model is "t5".
struct GgufVocabulary {
  std::vector<std::string> tokens;
  std::vector<float> scores;
  std::vector<int32_t> token_types;  // numbers of PieceType
  std::string precompiled_charsmap;  // may be empty
  bool add_space_prefix = true;
  bool remove_extra_whitespaces = true;
  std::optional<int64_t> eos_token_id;  // else the piece </s>
};
UnigramModel unigram_from_gguf(GgufVocabulary vocabulary, std::string_view who);

// spiece.model, tokenizer.json, a GGUF text encoder, or a ComfyUI one (safetensors with a tensor
// `spiece_model`), told apart by content; or a folder with tokenizer.json, which is preferred, or
// spiece.model. `extra_ids` of a tokenizer_config.json beside spiece.model counts, else there are
// 300. Throws Error naming the file.
UnigramModel read_unigram_model(const std::filesystem::path& path);

}  // namespace lacuna
