// SPDX-License-Identifier: Apache-2.0
// Prompt text -> token ids of a T5-style unigram tokenizer.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lacuna/models/text/text_rules.h"
#include "lacuna/models/text/unigram_model.h"

namespace lacuna {

// Two references exist and differ; each file form follows its own:
//   spiece.model, GGUF   transformers' slow T5Tokenizer (SentencePiece)
//   tokenizer.json       transformers' fast T5TokenizerFast (the `tokenizers` library), which is
//                        what Wan pipelines load
// Where the two disagree on a prompt:
//   characters outside the vocabulary: with byte fallback their UTF-8 bytes, else one <unk> per
//     run. The slow tokenizer follows the model file; fast files converted from such a model say
//     "byte_fallback": false although all byte pieces are there. That is the switch below.
//   decomposed letters: see charsmap.h.
//   `<s>` in a prompt is one token in the fast form only; so is the text of any control or byte
//     piece that normalisation produces (full-width brackets).
//   a prompt that ends in `</s>` gets a second one in the fast form only.
//   U+2581 itself at the end of a prompt is dropped in the slow form only.
// transformers 5 rebuilds the fast tokenizer with unknown id 2, T5's; for UMT5's order of special
// pieces that is <s>, so out-of-vocabulary runs differ there. Here the file's own unk_id counts.
// Segmentation is SentencePiece's in both: whole segments in the slow form, word by word in the
// fast one, which only matters for ties within float rounding. Text rules are applied here, not by
// the library (unigram_model.h says why). Numbers: tools/parity/tokenizer_fixture.py.
class Tokenizer {
 public:
  // byte_fallback: empty = as the file says, else whether all 256 byte pieces exist. Throws Error
  // when asked for without all byte pieces, or when the model cannot be built.
  explicit Tokenizer(UnigramModel model, std::optional<bool> byte_fallback = {});
  // See read_unigram_model.
  static Tokenizer from_file(const std::filesystem::path& path,
                             std::optional<bool> byte_fallback = {});
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  // At most max_len ids, the last one eos_id(). Malformed UTF-8 reads as U+FFFD. The prompt is
  // taken as it is: clean_prompt (prompt.h) comes before. Safe to call from several threads.
  // Throws Error if the text exceeds kMaxPromptBytes or max_len < 1.
  std::vector<int32_t> encode(std::string_view text, int64_t max_len = 512) const;

  static constexpr size_t kMaxPromptBytes = 1 << 16;

  int32_t vocab_size() const { return model_.vocab_size(); }
  int32_t eos_id() const { return model_.eos_id; }
  int32_t unk_id() const { return model_.unk_id; }
  bool byte_fallback() const { return byte_fallback_; }
  const UnigramModel& model() const { return model_; }

 private:
  struct Segmenter;  // the SentencePiece processor

  void encode_slow(std::string_view text, std::vector<int32_t>& ids) const;
  void encode_fast(std::string_view text, std::vector<int32_t>& ids) const;
  void encode_fast_segment(std::string_view text, bool first, const HuggingFaceRules& rules,
                           std::vector<int32_t>& ids) const;
  void segment(std::string_view text, std::vector<int32_t>& ids) const;

  UnigramModel model_;
  bool byte_fallback_ = false;
  std::array<int32_t, 256> byte_ids_;  // -1 where missing
  std::unique_ptr<Segmenter> segmenter_;
  TokenFinder raw_tokens_, normalized_tokens_, user_symbols_;
};

}  // namespace lacuna
