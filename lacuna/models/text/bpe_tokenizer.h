// SPDX-License-Identifier: Apache-2.0
// Text -> token ids of a byte-level byte-pair tokenizer: Llama 3's, CLIP's, GPT-2's.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lacuna/models/text/bpe_model.h"
#include "lacuna/models/text/text_rules.h"

namespace lacuna {

// Ids are those of transformers' fast tokenizers (the `tokenizers` library). Where they may differ:
//   characters that came with Unicode 16 and 17 (5,004 letters and numbers, 55 capitals) are here
//     no letters yet, so a word with one may be cut elsewhere;
//   marks younger than the library's table of NFC (Unicode 10 or so; 113 of 3.3 million strings of
//     a letter, any character and two marks) are put in order here and not there;
//   CLIP's slow tokenizer of transformers 4 cleans text with ftfy, where that is installed, or with
//     BERT's rules; its fast one, the reference here, does neither.
// Numbers: tools/parity/bpe_fixture.py.
class BpeTokenizer {
 public:
  // Throws Error if the model is not valid.
  explicit BpeTokenizer(BpeModel model);
  // See read_bpe_model.
  static BpeTokenizer from_file(const std::filesystem::path& path);

  // Ids of the text alone. Special tokens in it are recognised, in prompts of strangers too, as the
  // library does it. Malformed UTF-8 reads as U+FFFD. Safe to call from several threads. Throws
  // Error if the text exceeds kMaxTextBytes.
  std::vector<int32_t> encode(std::string_view text) const;
  // With the tokens that the post-processor adds. At most max_len ids: the end of the text is left
  // out, not the tokens around it. Throws Error also if those alone are more than max_len.
  std::vector<int32_t> encode_with_special(std::string_view text, int64_t max_len) const;

  // A prompt of the longest that Tokenizer takes, in a template as long.
  static constexpr size_t kMaxTextBytes = 1 << 17;

  // Of a token by its name, `<|endoftext|>` for example.
  std::optional<int32_t> token_id(std::string_view token) const;
  int32_t vocab_size() const { return model_.vocab_size(); }
  const BpeModel& model() const { return model_; }

 private:
  std::string normalized(std::string_view text) const;
  void encode_stretch(std::string_view text, std::vector<int32_t>& ids) const;
  void encode_word(std::string_view word, std::vector<int32_t>& ids) const;

  BpeModel model_;
  // Of each byte in a word and at its end; -1 where there is none.
  std::array<int32_t, 256> byte_ids_, last_byte_ids_;
  std::array<std::string, 256> byte_texts_;  // a printable character for each byte
  TokenFinder raw_tokens_, normalized_tokens_;
};

}  // namespace lacuna
