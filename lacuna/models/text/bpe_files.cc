// SPDX-License-Identifier: Apache-2.0
// Reader of CLIP's vocab.json and merges.txt: what transformers 5's CLIPTokenizer makes of them.
#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "lacuna/core/error.h"
#include "lacuna/models/text/bpe_reader.h"

namespace lacuna {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kClipStart = "<|startoftext|>", kClipEnd = "<|endoftext|>";

// Lines "left right" behind lines of the version.
BpeMerges read_merges_text(std::string_view text, const BpeVocabulary& vocabulary,
                           std::string_view who) {
  std::vector<std::pair<std::string_view, std::string_view>> merges;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.starts_with("#version")) continue;
    merges.push_back(split_bpe_merge(line, merges.size(), who));
  }
  return find_bpe_merges(merges, vocabulary, who);
}

// A special token of tokenizer_config.json, which is its text or an object with it.
std::optional<std::string> named_token(const HostileObject& config, const char* key,
                                       std::string_view who) {
  const Json* value = config.find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_string()) return value->get<std::string>();
  return HostileObject(*value, key, who).text("content");
}

int32_t id_of_key(const std::string& key, std::string_view who) {
  int32_t id = -1;
  const char* end = key.data() + key.size();
  const auto [stop, problem] = std::from_chars(key.data(), end, id);
  LACUNA_CHECK(problem == std::errc() && stop == end && id >= 0,
               "{}: added_tokens_decoder has the key {}, expected a token id", who,
               shown_json(key));
  return id;
}

void read_config(std::string_view text, BpeModel& model, std::string_view who) {
  const Json json = parse_hostile_json(text, who);
  const HostileObject config(json, "tokenizer_config.json", who);
  if (config.find("tokenizer_class") != nullptr) {
    const std::string& name = config.text("tokenizer_class");
    LACUNA_CHECK(name == "CLIPTokenizer" || name == "CLIPTokenizerFast",
                 "{}: tokenizer_class {}, expected CLIPTokenizer where there is no tokenizer.json",
                 who, shown_json(name));
  }
  for (const auto& [key, expected] :
       {std::pair("bos_token", kClipStart), {"eos_token", kClipEnd}, {"unk_token", kClipEnd}}) {
    const auto name = named_token(config, key, who);
    LACUNA_CHECK(name.value_or(std::string(expected)) == expected, "{}: {} {}, expected {}", who,
                 key, shown_json(*name), expected);
  }
  if (config.find("added_tokens_decoder") != nullptr) {
    model.added.clear();
    // By id, as the library adds them; the keys are sorted as text.
    for (const auto& [key, value] : config.object("added_tokens_decoder").items()) {
      const HostileObject object(value, "added token", who);
      model.added.push_back(read_bpe_added(object, id_of_key(key, who), who));
    }
    std::sort(model.added.begin(), model.added.end(),
              [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  }
  // A token that pads is special, so it is found in text too.
  const auto pad = named_token(config, "pad_token", who);
  const bool known =
      !pad.has_value() || std::any_of(model.added.begin(), model.added.end(),
                                      [&](const AddedToken& token) { return token.text == *pad; });
  if (known) return;
  const int32_t id = model.vocabulary.find(*pad);
  LACUNA_CHECK(id >= 0, "{}: pad_token {} is no token", who, shown_json(*pad));
  model.added.push_back({*pad, id});
}

}  // namespace

BpeModel parse_clip_files(std::string_view vocab, std::string_view merges, std::string_view config,
                          std::string_view who) {
  for (const std::string_view file : {vocab, merges, config}) {
    LACUNA_CHECK(file.size() <= kMaxBpeFileBytes, "{}: a file of {} bytes, expected at most {}",
                 who, file.size(), kMaxBpeFileBytes);
  }
  BpeModel model;
  model.vocabulary = read_bpe_vocabulary(parse_hostile_json(vocab, who), who);
  model.merges = read_merges_text(merges, model.vocabulary, who);
  model.end_of_word_suffix = "</w>";
  for (const std::string_view name : {kClipStart, kClipEnd}) {
    const int32_t id = model.vocabulary.find(name);
    LACUNA_CHECK(id >= 0, "{}: vocab.json has no {}, expected that of CLIP", who, name);
    model.added.push_back({std::string(name), id});
    (name == kClipStart ? model.prefix : model.suffix).push_back(id);
  }
  model.unk_id = model.suffix.front();
  using Normalizer = BpeRules::Normalizer;
  model.rules.normalizer = {Normalizer::nfc, Normalizer::one_space, Normalizer::lowercase};
  model.rules.splits = {SplitPattern::clip_specials};
  model.rules.gpt2_split = true;
  if (!config.empty()) read_config(config, model, who);
  model.validate(who);
  return model;
}

}  // namespace lacuna
