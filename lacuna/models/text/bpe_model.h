// SPDX-License-Identifier: Apache-2.0
// A byte-level byte-pair vocabulary and its text rules, read from tokenizer.json or from CLIP's
// vocab.json and merges.txt. Both are hostile.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lacuna/models/text/bpe_merge.h"
#include "lacuna/models/text/bpe_split.h"
#include "lacuna/models/text/unigram_model.h"

namespace lacuna {

// Tokens by id and ids by token. Sorted and not hashed: a stranger's file cannot make it slow.
class BpeVocabulary {
 public:
  BpeVocabulary() = default;
  // tokens[id]. Throws Error naming `who` unless they are 1 to 2^21 different ones of at most 4096
  // bytes.
  BpeVocabulary(std::vector<std::string> tokens, std::string_view who);

  int32_t size() const { return static_cast<int32_t>(tokens_.size()); }
  const std::string& token(int32_t id) const { return tokens_[static_cast<size_t>(id)]; }
  // -1: no such token.
  int32_t find(std::string_view token) const;

 private:
  std::vector<std::string> tokens_;
  std::vector<int32_t> by_text_;
};

// As the `tokenizers` library treats text, and thus transformers' fast tokenizers.
struct BpeRules {
  enum class Normalizer : uint8_t { nfc, lowercase, one_space };  // one_space: \s+ to U+0020

  std::vector<Normalizer> normalizer;
  std::vector<SplitPattern> splits;  // one behind the other
  // ByteLevel, which comes last:
  bool add_prefix_space = false;  // in front of each word that `splits` leave
  bool gpt2_split = false;        // then cut once more
};

struct BpeModel {
  BpeVocabulary vocabulary;
  BpeMerges merges;
  int32_t unk_id = -1;             // -1: unknown bytes vanish
  std::string end_of_word_suffix;  // of the last byte of each word, as in CLIP
  bool fuse_unk = false;           // one unknown token for neighbours
  bool ignore_merges = false;      // a word that is a token needs no merges, as in Llama 3
  std::vector<AddedToken> added;
  BpeRules rules;
  std::vector<int32_t> prefix, suffix;  // what the post-processor puts around the text

  // Ids run below this; added tokens may lie past the vocabulary.
  int32_t vocab_size() const;
  // Throws Error naming `who` unless ids are in range and added tokens are at most 4096 different
  // ones of together at most 64 KiB, with the ids that the library would give them: their own in
  // the vocabulary, else the next free one.
  void validate(std::string_view who) const;
};

// tokenizer.json of a BPE model. Supported: normalizers NFC, Lowercase, Replace of \s+ by a space;
// pre-tokenizers Split by the expressions of bpe_split.h, ByteLevel (needed, and last);
// post-processors ByteLevel, TemplateProcessing, RobertaProcessing; Sequence of each. Others,
// dropout, byte_fallback, continuing_subword_prefix and single-word added tokens are refused by
// name. `truncation` and `padding` do not count: transformers sets both at every call. Throws
// Error naming `who`.
BpeModel parse_bpe_json(std::string_view text, std::string_view who);

// CLIP's vocab.json and merges.txt. `config`: tokenizer_config.json, which may list added tokens
// and name special ones; empty if there is none. Without added_tokens_decoder the special tokens
// are found as they are spelled only: old configs also have capitals lowered first in transformers
// 4, which does the same without a config, and not in 5. Throws Error naming `who`, the folder.
BpeModel parse_clip_files(std::string_view vocab, std::string_view merges, std::string_view config,
                          std::string_view who);

// A tokenizer.json, a vocab.json with its merges.txt beside it, or a folder with the one or the
// other. Throws Error naming the file.
BpeModel read_bpe_model(const std::filesystem::path& path);

}  // namespace lacuna
