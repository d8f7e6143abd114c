// SPDX-License-Identifier: Apache-2.0
// Reader of tokenizer.json files of Unigram models.
#include <nlohmann/json.hpp>

#include "lacuna/core/error.h"
#include "lacuna/models/text/hostile_json.h"
#include "lacuna/models/text/unigram_model.h"

namespace lacuna {
namespace {

using Json = nlohmann::json;
using Step = HuggingFaceRules::Step;

// UMT5's file has 17 MB. Parsed, a text can take 27 times its size.
constexpr size_t kMaxTokenizerBytes = size_t{64} << 20;
constexpr size_t kMaxSteps = 32;
constexpr int kMaxNesting = 8;

int base64_digit(char c) {
  if (c >= 'A' && c <= 'Z') return c - 'A';
  if (c >= 'a' && c <= 'z') return c - 'a' + 26;
  if (c >= '0' && c <= '9') return c - '0' + 52;
  if (c == '+') return 62;
  return c == '/' ? 63 : -1;
}

std::string decode_base64(std::string_view text, std::string_view who) {
  LACUNA_CHECK(text.size() % 4 == 0, "{}: base64 of {} characters, expected a multiple of 4", who,
               text.size());
  for (int i = 0; i < 2 && text.ends_with('='); ++i) text.remove_suffix(1);
  std::string out;
  out.reserve(text.size() * 3 / 4);
  uint32_t bits = 0;
  int filled = 0;
  for (const char c : text) {
    const int digit = base64_digit(c);
    LACUNA_CHECK(digit >= 0, "{}: byte {} in base64, expected A-Z a-z 0-9 + /", who,
                 static_cast<int>(static_cast<uint8_t>(c)));
    bits = bits << 6 | static_cast<uint32_t>(digit);
    filled += 6;
    if (filled < 8) continue;
    filled -= 8;
    out.push_back(static_cast<char>(bits >> filled & 0xff));
  }
  return out;
}

class Reader {
 public:
  Reader(std::string_view who) : who_(who) {}

  UnigramModel read(const Json& json) {
    const HostileObject root(json, "file", who_);
    const Json* model = root.find("model");
    LACUNA_CHECK(model != nullptr, "{}: no `model`, expected a tokenizer.json", who_);
    read_model(HostileObject(*model, "model", who_));
    if (const Json* normalizer = root.find("normalizer")) read_normalizer(*normalizer, 0);
    if (const Json* pre = root.find("pre_tokenizer")) read_pre_tokenizer(*pre, 0);
    LACUNA_CHECK(metaspace_, "{}: no Metaspace pre-tokenizer, expected one", who_);
    if (root.find("added_tokens") != nullptr) read_added(root.array("added_tokens"));
    out_.rules = std::move(rules_);
    out_.validate(who_);
    return std::move(out_);
  }

 private:
  void read_model(const HostileObject& model) {
    if (model.find("type") != nullptr) {
      LACUNA_CHECK(model.text("type") == "Unigram", "{}: model type {}, expected Unigram", who_,
                   shown_json(model.text("type")));
    }
    const Json& vocab = model.array("vocab");
    out_.pieces.reserve(vocab.size());
    for (const Json& entry : vocab) {
      LACUNA_CHECK(
          entry.is_array() && entry.size() == 2 && entry[0].is_string() && entry[1].is_number(),
          "{}: vocab entry {} is {}, expected [piece, score]", who_, out_.pieces.size(),
          shown_json(entry));
      const auto& text = entry[0].get_ref<const std::string&>();
      if (text == "</s>") out_.eos_id = static_cast<int32_t>(out_.pieces.size());
      out_.pieces.push_back({text, entry[1].get<float>(), PieceType::normal});
    }
    out_.unk_id = model.id("unk_id");
    if (model.find("byte_fallback") != nullptr) {
      out_.byte_fallback = model.flag("byte_fallback", false);
    }
  }

  void read_normalizer(const Json& json, int depth) {
    const HostileObject object(json, "normalizer", who_);
    const std::string& type = object.text("type");
    LACUNA_CHECK(depth < kMaxNesting && rules_.normalizer.size() < kMaxSteps,
                 "{}: normalizers nested or chained too deep, expected at most {} steps", who_,
                 kMaxSteps);
    if (type == "Sequence") {
      for (const Json& inner : object.array("normalizers")) read_normalizer(inner, depth + 1);
      return;
    }
    Step step;
    if (type == "Precompiled") {
      LACUNA_CHECK(!charsmap_, "{}: two Precompiled normalizers, expected one", who_);
      charsmap_ = true;
      // null stands for a model without a character map.
      if (object.find("precompiled_charsmap") == nullptr) return;
      out_.charsmap = Charsmap(decode_base64(object.text("precompiled_charsmap"), who_), who_);
      step.kind = Step::Kind::charsmap;
    } else if (type == "Strip") {
      step.kind = Step::Kind::strip;
      step.left = object.flag("strip_left", false);
      step.right = object.flag("strip_right", false);
    } else if (type == "Replace") {
      step.kind = Step::Kind::replace;
      read_pattern(object, step);
      step.content = object.text("content");
    } else {
      fail("{}: normalizer {}, expected Precompiled, Strip, Replace or Sequence", who_,
           shown_json(type));
    }
    rules_.normalizer.push_back(std::move(step));
  }

  // {"String": s}, or the one regular expression that T5 files use: {"Regex": " {2,}"}.
  void read_pattern(const HostileObject& replace, Step& step) {
    const Json* json = replace.find("pattern");
    LACUNA_CHECK(json != nullptr, "{}: Replace without `pattern`", who_);
    const HostileObject pattern(*json, "Replace pattern", who_);
    if (pattern.find("String") != nullptr) {
      step.pattern = pattern.text("String");
      LACUNA_CHECK(!step.pattern.empty(), "{}: Replace of an empty string", who_);
      return;
    }
    const std::string& regex = pattern.text("Regex");
    LACUNA_CHECK(regex == " {2,}", "{}: Replace of the expression {}, expected \" {{2,}}\"", who_,
                 shown_json(regex));
    step.pattern.assign(1, ' ');
    step.runs = true;
  }

  void read_pre_tokenizer(const Json& json, int depth) {
    const HostileObject object(json, "pre_tokenizer", who_);
    const std::string& type = object.text("type");
    LACUNA_CHECK(depth < kMaxNesting, "{}: pre-tokenizers nested too deep", who_);
    LACUNA_CHECK(!metaspace_, "{}: pre-tokenizer {} behind Metaspace, expected none", who_,
                 shown_json(type));
    if (type == "Sequence") {
      for (const Json& inner : object.array("pretokenizers")) read_pre_tokenizer(inner, depth + 1);
    } else if (type == "WhitespaceSplit") {
      rules_.split_white_space = true;
    } else if (type == "Metaspace") {
      metaspace_ = true;
      read_metaspace(object);
    } else {
      fail("{}: pre-tokenizer {}, expected Metaspace, WhitespaceSplit or Sequence", who_,
           shown_json(type));
    }
  }

  void read_metaspace(const HostileObject& object) {
    LACUNA_CHECK(object.text("replacement") == "\xe2\x96\x81",
                 "{}: Metaspace replacement {}, expected U+2581", who_,
                 shown_json(object.text("replacement")));
    rules_.split_words = object.flag("split", true);
    // Files older than tokenizers 0.15 only have the flag.
    using Prefix = HuggingFaceRules::Prefix;
    rules_.prefix = object.flag("add_prefix_space", true) ? Prefix::always : Prefix::never;
    if (object.find("prepend_scheme") == nullptr) return;
    const std::string& scheme = object.text("prepend_scheme");
    LACUNA_CHECK(scheme == "always" || scheme == "first" || scheme == "never",
                 "{}: prepend_scheme {}, expected always, first or never", who_,
                 shown_json(scheme));
    rules_.prefix = scheme == "always"  ? Prefix::always
                    : scheme == "first" ? Prefix::first
                                        : Prefix::never;
  }

  void read_added(const Json& tokens) {
    for (const Json& json : tokens) {
      const HostileObject object(json, "added token", who_);
      AddedToken token{object.text("content"), object.id("id"), object.flag("lstrip", false),
                       object.flag("rstrip", false), object.flag("normalized", false)};
      LACUNA_CHECK(!object.flag("single_word", false),
                   "{}: added token {} is for single words, expected one that matches anywhere",
                   who_, shown_json(token.text));
      if (!token.text.empty()) out_.added.push_back(std::move(token));
    }
  }

  std::string_view who_;
  UnigramModel out_;
  HuggingFaceRules rules_;
  bool charsmap_ = false, metaspace_ = false;
};

}  // namespace

UnigramModel parse_tokenizer_json(std::string_view text, std::string_view who) {
  LACUNA_CHECK(text.size() <= kMaxTokenizerBytes, "{}: {} bytes, expected at most {}", who,
               text.size(), kMaxTokenizerBytes);
  return Reader(who).read(parse_hostile_json(text, who));
}

}  // namespace lacuna
