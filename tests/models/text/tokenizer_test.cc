// SPDX-License-Identifier: Apache-2.0
// Behaviour that can be worked out by hand; agreement with transformers is
// tokenizer_parity_test.cc.
#include "lacuna/models/text/tokenizer.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "lacuna/core/error.h"
#include "tests/support/repository.h"
#include "tests/support/temp_folder.h"

namespace lacuna {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::json;

const std::string kSpace = "\xe2\x96\x81";

// pad 0, eos 1, bos 2, unk 3, then words, letters a..e and, if asked for, all bytes.
Json small_json(bool bytes = false) {
  Json vocab = Json::array({{"<pad>", 0.0}, {"</s>", 0.0}, {"<s>", 0.0}, {"<unk>", 0.0}});
  for (const char* piece : {"", "a", "b", "ab", "abc"}) {
    vocab.push_back({kSpace + piece, *piece == 0 ? -3.0 : -2.0});
  }
  for (const char* piece : {"a", "b", "c", "d", "e"}) vocab.push_back({piece, -4.0});
  for (int i = 0; bytes && i < 256; ++i) vocab.push_back({fmt::format("<0x{:02X}>", i), -9.0});
  const auto added = [](int id, const char* text) {
    return Json{{"id", id},        {"content", text},     {"single_word", false}, {"lstrip", false},
                {"rstrip", false}, {"normalized", false}, {"special", true}};
  };
  return {
      {"version", "1.0"},
      {"added_tokens", Json::array({added(0, "<pad>"), added(1, "</s>"), added(3, "<unk>")})},
      {"normalizer",
       {{"type", "Sequence"},
        {"normalizers",
         Json::array(
             {{{"type", "Strip"}, {"strip_left", false}, {"strip_right", true}},
              {{"type", "Replace"}, {"pattern", {{"Regex", " {2,}"}}}, {"content", kSpace}}})}}},
      {"pre_tokenizer",
       {{"type", "Metaspace"}, {"replacement", kSpace}, {"prepend_scheme", "always"}}},
      {"model", {{"type", "Unigram"}, {"unk_id", 3}, {"vocab", vocab}}}};
}

Tokenizer from_json(const Json& json, std::optional<bool> byte_fallback = {}) {
  return Tokenizer(parse_tokenizer_json(json.dump(), "test.json"), byte_fallback);
}

TEST(Tokenizer, TakesTheBestScoringPieces) {
  const Tokenizer t = from_json(small_json());
  EXPECT_THAT(t.encode("ab"), ElementsAre(7, 1));  // one piece, not two
  EXPECT_THAT(t.encode("abc d"), ElementsAre(8, 4, 12, 1));
  EXPECT_THAT(t.encode("  ab   a "), ElementsAre(7, 5, 1));
  EXPECT_THAT(t.encode(""), ElementsAre(1));
  EXPECT_THAT(t.encode("   "), ElementsAre(1));
  EXPECT_EQ(t.vocab_size(), 14);
}

TEST(Tokenizer, TruncatesAndKeepsTheEnd) {
  const Tokenizer t = from_json(small_json());
  EXPECT_THAT(t.encode("a a a a", 5), ElementsAre(5, 5, 5, 5, 1));
  EXPECT_THAT(t.encode("a a a a a a", 5), ElementsAre(5, 5, 5, 5, 1));
  EXPECT_THAT(t.encode("a a", 1), ElementsAre(1));
  EXPECT_THROW(t.encode("a", 0), Error);
  EXPECT_THROW(t.encode(std::string(Tokenizer::kMaxPromptBytes + 1, 'a')), Error);
  EXPECT_EQ(t.encode(std::string(Tokenizer::kMaxPromptBytes, 'a')).size(), 512u);
}

TEST(Tokenizer, UnknownRunsAreOneTokenOrTheirBytes) {
  const Json json = small_json(true);
  const std::vector<int32_t> unk = {5, 3, 12, 1};
  std::vector<int32_t> bytes = {5};
  for (const uint8_t b : {0xe2, 0x98, 0x83, 0xe2, 0x98, 0x83}) bytes.push_back(14 + b);
  bytes.insert(bytes.end(), {12, 1});
  const std::string text =
      "a\xe2\x98\x83\xe2\x98\x83"
      "d";
  // No `byte_fallback` in the file: on, because all byte pieces are there.
  EXPECT_EQ(from_json(json).encode(text), bytes);
  EXPECT_EQ(from_json(json, false).encode(text), unk);
  Json off = json;
  off["model"]["byte_fallback"] = false;
  EXPECT_FALSE(from_json(off).byte_fallback());
  EXPECT_EQ(from_json(off).encode(text), unk);
  EXPECT_EQ(from_json(off, true).encode(text), bytes);
  EXPECT_EQ(from_json(small_json(false)).encode(text), unk);
  EXPECT_THROW(from_json(small_json(false), true), Error);
}

TEST(Tokenizer, MalformedBytesReadAsTheReplacementCharacter) {
  const Tokenizer t = from_json(small_json(true));
  EXPECT_EQ(t.encode("a\xff"
                     "d"),
            t.encode("a\xef\xbf\xbd"
                     "d"));
}

TEST(Tokenizer, AddedTokensCutTheText) {
  Json json = small_json();
  json["added_tokens"].push_back(
      {{"id", 14}, {"content", "<x>"}, {"lstrip", true}, {"rstrip", true}, {"normalized", false}});
  json["added_tokens"].push_back({{"id", 15}, {"content", "<x><y>"}, {"normalized", false}});
  const Tokenizer t = from_json(json);
  EXPECT_THAT(t.encode("a</s>b"), ElementsAre(5, 1, 6, 1));
  EXPECT_THAT(t.encode("a <x>  b"), ElementsAre(5, 14, 6, 1));
  EXPECT_THAT(t.encode("<x><y><x>"), ElementsAre(15, 14, 1));  // the longest wins
  EXPECT_THAT(t.encode("</s>"), ElementsAre(1, 1));
  EXPECT_EQ(t.vocab_size(), 16);
}

TEST(Tokenizer, NormalizedTokensAreFoundAfterNormalisation) {
  Json json = small_json();
  json["normalizer"]["normalizers"].push_back(
      {{"type", "Replace"}, {"pattern", {{"String", "!"}}}, {"content", "?"}});
  json["added_tokens"].push_back({{"id", 14}, {"content", "?!"}, {"normalized", true}});
  const Tokenizer t = from_json(json);
  EXPECT_THAT(t.encode("a!?b"), ElementsAre(5, 14, 6, 1));  // both read `??` by then
}

TEST(Tokenizer, PrependSchemes) {
  Json json = small_json();
  json["pre_tokenizer"]["prepend_scheme"] = "never";
  EXPECT_THAT(from_json(json).encode("ab ab"), ElementsAre(9, 10, 7, 1));
  json["pre_tokenizer"]["prepend_scheme"] = "first";
  EXPECT_THAT(from_json(json).encode("ab</s>ab"), ElementsAre(7, 1, 9, 10, 1));
  json["pre_tokenizer"].erase("prepend_scheme");
  json["pre_tokenizer"]["add_prefix_space"] = false;
  EXPECT_THAT(from_json(json).encode("ab"), ElementsAre(9, 10, 1));
}

GgufVocabulary small_gguf() {
  GgufVocabulary v;
  const Json json = small_json(true);
  for (const Json& entry : json["model"]["vocab"]) {
    v.tokens.push_back(entry[0]);
    v.scores.push_back(entry[1]);
    v.token_types.push_back(v.tokens.size() > 14 ? 6 : v.tokens.size() <= 3 ? 3 : 1);
  }
  v.token_types[3] = 2;
  v.tokens.push_back("<extra_id_0>");
  v.scores.push_back(0.0f);
  v.token_types.push_back(4);
  return v;
}

TEST(Tokenizer, ReadsGgufVocabularies) {
  const Tokenizer t(unigram_from_gguf(small_gguf(), "x.gguf"));
  EXPECT_TRUE(t.byte_fallback());
  EXPECT_THAT(t.encode("abc <extra_id_0> a"), ElementsAre(8, 270, 5, 1));
  EXPECT_THAT(t.encode("a\x07"), ElementsAre(5, 14 + 7, 1));
  EXPECT_THAT(t.encode("a</s>"), ElementsAre(5, 1));  // as the slow tokenizer: no second end
  GgufVocabulary bad = small_gguf();
  bad.scores.pop_back();
  EXPECT_THROW(unigram_from_gguf(bad, "x"), Error);
  bad = small_gguf();
  bad.token_types[5] = 9;
  EXPECT_THROW(unigram_from_gguf(bad, "x"), Error);
  bad = small_gguf();
  bad.eos_token_id = 100000;
  EXPECT_THROW(unigram_from_gguf(bad, "x"), Error);
}

// T5 has 100 sentinels, UMT5 300; only the config beside spiece.model says so.
TEST(Tokenizer, TheConfigCountsTheSentinelsOfASpieceModel) {
  const test::TempFolder folder;
  std::filesystem::copy_file(test::test_data() / "tokenizer/plain.spiece.model",
                             folder.path() / "spiece.model");
  const Tokenizer umt5 = Tokenizer::from_file(folder.path());
  const auto config = [&](const char* text) {
    std::ofstream(folder.path() / "tokenizer_config.json") << text;
    return Tokenizer::from_file(folder.path());
  };
  const Tokenizer t5 = config(R"({"extra_ids": 100, "tokenizer_class": "T5Tokenizer"})");
  EXPECT_EQ(t5.vocab_size(), umt5.vocab_size() - 200);
  EXPECT_THAT(t5.encode("<extra_id_0>"), ElementsAre(t5.vocab_size() - 1, 1));
  EXPECT_THAT(t5.encode("<extra_id_99>"), ElementsAre(t5.vocab_size() - 100, 1));
  EXPECT_EQ(config("{}").vocab_size(), umt5.vocab_size());
  for (const char* text : {"[]", "{", R"({"extra_ids": -1})", R"({"extra_ids": 1001})"}) {
    EXPECT_THROW(config(text), Error) << text;
  }
}

TEST(Tokenizer, WhatItCannotDoIsRefusedByName) {
  const auto refusal = [](const Json& json) -> std::string {
    try {
      from_json(json);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  Json json = small_json();
  json["model"]["type"] = "BPE";
  EXPECT_THAT(refusal(json), HasSubstr("BPE"));
  json = small_json();
  json["normalizer"] = {{"type", "Lowercase"}};
  EXPECT_THAT(refusal(json), HasSubstr("Lowercase"));
  json = small_json();
  json["pre_tokenizer"] = {{"type", "ByteLevel"}};
  EXPECT_THAT(refusal(json), HasSubstr("ByteLevel"));
  json = small_json();
  json["normalizer"]["normalizers"][1]["pattern"]["Regex"] = "(a*)*b";
  EXPECT_THAT(refusal(json), HasSubstr("(a*)*b"));
  json = small_json();
  json["added_tokens"][0]["single_word"] = true;
  EXPECT_THAT(refusal(json), HasSubstr("single"));
  json = small_json();
  json["model"]["unk_id"] = nullptr;
  EXPECT_THAT(refusal(json), HasSubstr("unk_id"));
}

}  // namespace
}  // namespace lacuna
