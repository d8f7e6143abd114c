// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/text/bpe_reader.h"

#include <vector>

#include "lacuna/core/error.h"

namespace lacuna {
namespace {

constexpr size_t kMaxMerges = size_t{1} << 22;

}  // namespace

BpeVocabulary read_bpe_vocabulary(const nlohmann::json& tokens, std::string_view who) {
  LACUNA_CHECK(tokens.is_object(), "{}: vocabulary is {}, expected an object", who,
               shown_json(tokens));
  LACUNA_CHECK(tokens.size() <= kMaxPieces, "{}: {} tokens, expected 1 to {}", who, tokens.size(),
               kMaxPieces);
  std::vector<std::string> texts(tokens.size());
  std::vector<bool> taken(tokens.size(), false);
  for (const auto& [text, id] : tokens.items()) {
    const bool fits =
        id.is_number_unsigned() && id.get<uint64_t>() < texts.size() && !taken[id.get<size_t>()];
    LACUNA_CHECK(fits, "{}: token {} has id {}, expected 0 to {}, each once", who, shown_json(text),
                 shown_json(id), texts.size() - 1);
    taken[id.get<size_t>()] = true;
    texts[id.get<size_t>()] = text;
  }
  return BpeVocabulary(std::move(texts), who);
}

BpeMerges find_bpe_merges(std::span<const std::pair<std::string_view, std::string_view>> merges,
                          const BpeVocabulary& vocabulary, std::string_view who) {
  LACUNA_CHECK(merges.size() <= kMaxMerges, "{}: {} merges, expected at most {}", who,
               merges.size(), kMaxMerges);
  std::vector<BpeMerge> found;
  found.reserve(merges.size());
  std::string both;
  for (const auto& [left, right] : merges) {
    both.assign(left).append(right);
    const BpeMerge merge = {vocabulary.find(left), vocabulary.find(right), vocabulary.find(both)};
    LACUNA_CHECK(merge.left >= 0 && merge.right >= 0 && merge.merged >= 0,
                 "{}: merge {} of {} and {}, expected tokens of the vocabulary that make another",
                 who, found.size(), shown_json(left), shown_json(right));
    found.push_back(merge);
  }
  return BpeMerges(found);
}

std::pair<std::string_view, std::string_view> split_bpe_merge(std::string_view entry, size_t place,
                                                              std::string_view who) {
  const size_t space = entry.find(' ');
  LACUNA_CHECK(space != std::string_view::npos && entry.find(' ', space + 1) == entry.npos,
               "{}: merge {} is {}, expected two tokens", who, place,
               shown_json(entry.substr(0, 60)));
  return {entry.substr(0, space), entry.substr(space + 1)};
}

AddedToken read_bpe_added(const HostileObject& object, int32_t id, std::string_view who) {
  AddedToken token{object.text("content"), id, object.flag("lstrip", false),
                   object.flag("rstrip", false), object.flag("normalized", false)};
  LACUNA_CHECK(!object.flag("single_word", false),
               "{}: added token {} is for single words, expected one that matches anywhere", who,
               shown_json(token.text));
  return token;
}

}  // namespace lacuna
