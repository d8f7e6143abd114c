// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/text/bpe_model.h"

#include <algorithm>
#include <numeric>
#include <set>
#include <utility>

#include "lacuna/core/error.h"
#include "lacuna/core/mapped_file.h"
#include "lacuna/models/text/hostile_json.h"

namespace lacuna {
namespace {

constexpr size_t kMaxTokenBytes = 4096;  // Llama 3's longest has 256
constexpr size_t kMaxAddedTokens = 4096;
// Added tokens are looked for at every byte of a text, so together they may not be long.
constexpr size_t kMaxAddedBytes = size_t{1} << 16;

// What a file holds; empty if there is none.
std::string optional_file(const std::filesystem::path& path) {
  if (!std::filesystem::exists(path)) return {};
  const MappedFile mapped(path);
  check_not_lfs_pointer(mapped.bytes(), path.string());
  return {reinterpret_cast<const char*>(mapped.bytes().data()), mapped.bytes().size()};
}

}  // namespace

BpeVocabulary::BpeVocabulary(std::vector<std::string> tokens, std::string_view who)
    : tokens_(std::move(tokens)), by_text_(tokens_.size()) {
  LACUNA_CHECK(!tokens_.empty() && tokens_.size() <= kMaxPieces, "{}: {} tokens, expected 1 to {}",
               who, tokens_.size(), kMaxPieces);
  for (size_t i = 0; i < tokens_.size(); ++i) {
    LACUNA_CHECK(tokens_[i].size() <= kMaxTokenBytes,
                 "{}: token {} of {} bytes, expected at most {}", who, i, tokens_[i].size(),
                 kMaxTokenBytes);
  }
  std::iota(by_text_.begin(), by_text_.end(), 0);
  std::sort(by_text_.begin(), by_text_.end(),
            [this](int32_t a, int32_t b) { return token(a) < token(b); });
  const auto twice =
      std::adjacent_find(by_text_.begin(), by_text_.end(),
                         [this](int32_t a, int32_t b) { return token(a) == token(b); });
  LACUNA_CHECK(twice == by_text_.end(), "{}: tokens {} and {} are the same text", who, *twice,
               *(twice + 1));
}

int32_t BpeVocabulary::find(std::string_view text) const {
  const auto it = std::lower_bound(
      by_text_.begin(), by_text_.end(), text,
      [this](int32_t id, std::string_view value) { return std::string_view(token(id)) < value; });
  return it != by_text_.end() && token(*it) == text ? *it : -1;
}

int32_t BpeModel::vocab_size() const {
  int32_t size = vocabulary.size();
  for (const AddedToken& token : added) size = std::max(size, token.id + 1);
  return size;
}

void BpeModel::validate(std::string_view who) const {
  LACUNA_CHECK(vocabulary.size() > 0, "{}: no vocabulary, expected one", who);
  LACUNA_CHECK(unk_id < vocabulary.size(), "{}: unknown token {}, expected less than {}", who,
               unk_id, vocabulary.size());
  LACUNA_CHECK(added.size() <= kMaxAddedTokens, "{}: {} added tokens, expected at most {}", who,
               added.size(), kMaxAddedTokens);
  size_t bytes = 0;
  int32_t next = vocabulary.size();
  std::set<std::string_view> seen;
  for (const AddedToken& token : added) {
    LACUNA_CHECK(!token.text.empty() && seen.insert(token.text).second,
                 "{}: added token {} is empty or stated twice", who, shown_json(token.text));
    bytes += token.text.size();
    const int32_t own = vocabulary.find(token.text);
    const int32_t expected = own >= 0 ? own : next;
    LACUNA_CHECK(token.id == expected, "{}: added token {} has id {}, expected {}", who,
                 shown_json(token.text), token.id, expected);
    if (own < 0) ++next;
  }
  LACUNA_CHECK(bytes <= kMaxAddedBytes, "{}: added tokens of {} bytes, expected at most {}", who,
               bytes, kMaxAddedBytes);
  for (const std::vector<int32_t>* ids : {&prefix, &suffix}) {
    for (const int32_t id : *ids) {
      LACUNA_CHECK(id >= 0 && id < next, "{}: post-processor adds id {}, expected 0 to {}", who, id,
                   next - 1);
    }
  }
}

BpeModel read_bpe_model(const std::filesystem::path& path) {
  const bool in_folder = std::filesystem::is_directory(path);
  const std::filesystem::path file = in_folder ? path / "tokenizer.json" : path;
  if (file.filename() == "vocab.json" || (in_folder && !std::filesystem::exists(file))) {
    const std::filesystem::path folder = file.parent_path();
    const std::string vocab = optional_file(folder / "vocab.json");
    const std::string merges = optional_file(folder / "merges.txt");
    LACUNA_CHECK(!vocab.empty() && !merges.empty(),
                 "{}: neither tokenizer.json nor vocab.json with merges.txt, expected one",
                 folder.string());
    return parse_clip_files(vocab, merges, optional_file(folder / "tokenizer_config.json"),
                            folder.string());
  }
  const MappedFile mapped(file);
  check_not_lfs_pointer(mapped.bytes(), file.string());
  return parse_bpe_json(
      {reinterpret_cast<const char*>(mapped.bytes().data()), mapped.bytes().size()}, file.string());
}

}  // namespace lacuna
