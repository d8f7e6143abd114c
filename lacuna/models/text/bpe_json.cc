// SPDX-License-Identifier: Apache-2.0
// Reader of tokenizer.json files of BPE models.
#include <nlohmann/json.hpp>

#include "lacuna/core/error.h"
#include "lacuna/models/text/bpe_reader.h"

namespace lacuna {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxBpeSteps = 16;
constexpr size_t kMaxAroundText = 64;

class BpeJsonReader {
 public:
  explicit BpeJsonReader(std::string_view who) : who_(who) {}

  BpeModel read(const Json& json) {
    const HostileObject root(json, "file", who_);
    read_model(root.object("model"));
    if (const Json* normalizer = root.find("normalizer")) read_normalizer(*normalizer);
    const Json* pre = root.find("pre_tokenizer");
    if (pre != nullptr) read_pre_tokenizer(*pre);
    LACUNA_CHECK(byte_level_, "{}: no ByteLevel pre-tokenizer, expected one", who_);
    if (const Json* post = root.find("post_processor")) read_post_processor(*post);
    if (root.find("added_tokens") != nullptr) read_added(root.array("added_tokens"));
    out_.validate(who_);
    return std::move(out_);
  }

 private:
  void read_model(const Json& json) {
    const HostileObject model(json, "model", who_);
    // Files older than tokenizers 0.10 leave the type out.
    if (model.find("type") != nullptr) {
      LACUNA_CHECK(model.text("type") == "BPE", "{}: model type {}, expected BPE", who_,
                   shown_json(model.text("type")));
    }
    refuse_model_switches(model);
    out_.vocabulary = read_bpe_vocabulary(model.object("vocab"), who_);
    out_.fuse_unk = model.flag("fuse_unk", false);
    out_.ignore_merges = model.flag("ignore_merges", false);
    if (model.find("end_of_word_suffix") != nullptr) {
      out_.end_of_word_suffix = model.text("end_of_word_suffix");
    }
    if (model.find("unk_token") != nullptr) {
      out_.unk_id = out_.vocabulary.find(model.text("unk_token"));
      LACUNA_CHECK(out_.unk_id >= 0, "{}: unk_token {} is not in the vocabulary", who_,
                   shown_json(model.text("unk_token")));
    }
    read_merges(model.array("merges"));
  }

  void refuse_model_switches(const HostileObject& model) const {
    LACUNA_CHECK(!model.flag("byte_fallback", false), "{}: byte_fallback, expected none", who_);
    const Json* dropout = model.find("dropout");
    LACUNA_CHECK(dropout == nullptr || (dropout->is_number() && dropout->get<double>() == 0.0),
                 "{}: dropout {}, expected none", who_, shown_json(*dropout));
    const Json* prefix = model.find("continuing_subword_prefix");
    LACUNA_CHECK(prefix == nullptr || *prefix == "",
                 "{}: continuing_subword_prefix {}, expected none", who_, shown_json(*prefix));
  }

  void read_merges(const Json& entries) {
    std::vector<std::pair<std::string_view, std::string_view>> merges;
    merges.reserve(entries.size());
    for (const Json& entry : entries) {
      if (entry.is_string()) {
        merges.push_back(split_bpe_merge(entry.get_ref<const std::string&>(), merges.size(), who_));
        continue;
      }
      LACUNA_CHECK(
          entry.is_array() && entry.size() == 2 && entry[0].is_string() && entry[1].is_string(),
          "{}: merge {} is {}, expected two tokens", who_, merges.size(), shown_json(entry));
      merges.emplace_back(entry[0].get_ref<const std::string&>(),
                          entry[1].get_ref<const std::string&>());
    }
    out_.merges = find_bpe_merges(merges, out_.vocabulary, who_);
  }

  // JSON is nested at most 32 deep, so this recursion ends.
  void read_normalizer(const Json& json) {
    const HostileObject object(json, "normalizer", who_);
    const std::string& type = object.text("type");
    if (type == "Sequence") {
      for (const Json& inner : object.array("normalizers")) read_normalizer(inner);
      return;
    }
    using Normalizer = BpeRules::Normalizer;
    if (type == "NFC") {
      out_.rules.normalizer.push_back(Normalizer::nfc);
    } else if (type == "Lowercase") {
      out_.rules.normalizer.push_back(Normalizer::lowercase);
    } else if (type == "Replace") {
      const HostileObject pattern(object.object("pattern"), "Replace pattern", who_);
      LACUNA_CHECK(pattern.text("Regex") == "\\s+" && object.text("content") == " ",
                   "{}: Replace of {} by {}, expected the expression \\s+ by a space", who_,
                   shown_json(pattern.text("Regex")), shown_json(object.text("content")));
      out_.rules.normalizer.push_back(Normalizer::one_space);
    } else {
      fail("{}: normalizer {}, expected NFC, Lowercase, Replace or Sequence", who_,
           shown_json(type));
    }
    LACUNA_CHECK(out_.rules.normalizer.size() <= kMaxBpeSteps,
                 "{}: more than {} normalizers, expected less", who_, kMaxBpeSteps);
  }

  void read_pre_tokenizer(const Json& json) {
    const HostileObject object(json, "pre-tokenizer", who_);
    const std::string& type = object.text("type");
    if (type == "Sequence") {
      for (const Json& inner : object.array("pretokenizers")) read_pre_tokenizer(inner);
      return;
    }
    LACUNA_CHECK(!byte_level_, "{}: pre-tokenizer {} behind ByteLevel, expected none", who_,
                 shown_json(type));
    if (type == "ByteLevel") {
      byte_level_ = true;
      out_.rules.add_prefix_space = object.flag("add_prefix_space", true);
      out_.rules.gpt2_split = object.flag("use_regex", true);
    } else if (type == "Split") {
      read_split(object);
    } else {
      fail("{}: pre-tokenizer {}, expected Split, ByteLevel or Sequence", who_, shown_json(type));
    }
  }

  void read_split(const HostileObject& split) {
    const HostileObject json(split.object("pattern"), "Split pattern", who_);
    const std::string& regex = json.text("Regex");
    const auto pattern = find_split_pattern(regex);
    LACUNA_CHECK(pattern.has_value(),
                 "{}: Split by the expression {}, expected that of GPT-2, Llama 3 or CLIP", who_,
                 shown_json(regex));
    const std::string& behavior = split.text("behavior");
    const bool inverted = split.flag("invert", false);
    const bool takes_matches = (behavior == "Removed" && inverted) ||
                               (behavior == "Isolated" && !inverted && covers_all(*pattern));
    LACUNA_CHECK(takes_matches, "{}: Split with behavior {}{}, expected the matches as words", who_,
                 shown_json(behavior), inverted ? ", inverted" : "");
    out_.rules.splits.push_back(*pattern);
    LACUNA_CHECK(out_.rules.splits.size() <= kMaxBpeSteps, "{}: more than {} Splits, expected less",
                 who_, kMaxBpeSteps);
  }

  void read_post_processor(const Json& json) {
    const HostileObject object(json, "post-processor", who_);
    const std::string& type = object.text("type");
    if (type == "Sequence") {
      for (const Json& inner : object.array("processors")) read_post_processor(inner);
      return;
    }
    if (type == "ByteLevel") return;  // changes offsets, not ids
    LACUNA_CHECK(out_.prefix.empty() && out_.suffix.empty(),
                 "{}: two post-processors that add tokens, expected one", who_);
    if (type == "TemplateProcessing") {
      read_template(object);
    } else if (type == "RobertaProcessing") {
      out_.prefix.push_back(roberta_id(object.array("cls")));
      out_.suffix.push_back(roberta_id(object.array("sep")));
    } else {
      fail(
          "{}: post-processor {}, expected ByteLevel, TemplateProcessing, RobertaProcessing or "
          "Sequence",
          who_, shown_json(type));
    }
  }

  int32_t roberta_id(const Json& pair) const {
    LACUNA_CHECK(pair.size() == 2 && pair[0].is_string(),
                 "{}: RobertaProcessing has {}, expected [token, id]", who_, shown_json(pair));
    const Json wrapped = {{"id", pair[1]}};
    return HostileObject(wrapped, "RobertaProcessing", who_).id("id");
  }

  // "single": [{"SpecialToken": {"id": name}}, {"Sequence": {"id": "A"}}]
  void read_template(const HostileObject& object) {
    bool text_seen = false;
    for (const Json& json : object.array("single")) {
      const HostileObject entry(json, "TemplateProcessing entry", who_);
      if (entry.find("Sequence") != nullptr) {
        const HostileObject sequence(entry.object("Sequence"), "Sequence", who_);
        LACUNA_CHECK(sequence.text("id") == "A" && !text_seen,
                     "{}: TemplateProcessing takes the text twice or another, expected A once",
                     who_);
        text_seen = true;
        continue;
      }
      const HostileObject special(entry.object("SpecialToken"), "SpecialToken", who_);
      append_special(object, special.text("id"), text_seen ? out_.suffix : out_.prefix);
    }
    LACUNA_CHECK(text_seen, "{}: TemplateProcessing without the text, expected A once", who_);
  }

  void append_special(const HostileObject& object, const std::string& name,
                      std::vector<int32_t>& ids) const {
    const Json& specials = object.object("special_tokens");
    const auto found = specials.find(name);
    LACUNA_CHECK(found != specials.end(),
                 "{}: TemplateProcessing names {}, which is no special token", who_,
                 shown_json(name));
    const HostileObject special(*found, "special token", who_);
    for (const Json& id : special.array("ids")) {
      const Json wrapped = {{"id", id}};
      ids.push_back(HostileObject(wrapped, "special token", who_).id("id"));
    }
    LACUNA_CHECK(ids.size() <= kMaxAroundText, "{}: post-processor adds more than {} tokens", who_,
                 kMaxAroundText);
  }

  void read_added(const Json& tokens) {
    for (const Json& json : tokens) {
      const HostileObject object(json, "added token", who_);
      out_.added.push_back(read_bpe_added(object, object.id("id"), who_));
    }
  }

  std::string_view who_;
  BpeModel out_;
  bool byte_level_ = false;
};

}  // namespace

BpeModel parse_bpe_json(std::string_view text, std::string_view who) {
  LACUNA_CHECK(text.size() <= kMaxBpeFileBytes, "{}: {} bytes, expected at most {}", who,
               text.size(), kMaxBpeFileBytes);
  return BpeJsonReader(who).read(parse_hostile_json(text, who));
}

}  // namespace lacuna
