// SPDX-License-Identifier: Apache-2.0
// Behaviour of byte-pair tokenizers that can be worked out by hand; agreement with transformers is
// bpe_parity_test.cc.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "lacuna/core/error.h"
#include "lacuna/models/text/bpe_tokenizer.h"
#include "lacuna/models/text/unicode_form.h"
#include "tests/support/temp_folder.h"

namespace lacuna {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Json = nlohmann::json;

// a b c ab bc abc <s> </s> <unk>; U+0120 stands for a space.
Json small_bpe() {
  const auto added = [](int id, const char* text) {
    return Json{{"id", id},        {"content", text},     {"single_word", false}, {"lstrip", false},
                {"rstrip", false}, {"normalized", false}, {"special", true}};
  };
  return {
      {"version", "1.0"},
      {"added_tokens", Json::array({added(6, "<s>"), added(7, "</s>"), added(9, "<new>")})},
      {"normalizer", nullptr},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}},
      {"post_processor", nullptr},
      {"model",
       {{"type", "BPE"},
        {"unk_token", "<unk>"},
        {"vocab",
         {{"a", 0},
          {"b", 1},
          {"c", 2},
          {"ab", 3},
          {"bc", 4},
          {"abc", 5},
          {"<s>", 6},
          {"</s>", 7},
          {"<unk>", 8}}},
        {"merges", Json::array({"b c", Json::array({"a", "b"}), "a bc"})}}}};
}

BpeTokenizer from_bpe(const Json& json) {
  return BpeTokenizer(parse_bpe_json(json.dump(), "test.json"));
}

TEST(BpeTokenizer, TheBestPairGoesFirst) {
  const BpeTokenizer t = from_bpe(small_bpe());
  EXPECT_THAT(t.encode("abc"), ElementsAre(5));  // a bc, not ab c
  EXPECT_THAT(t.encode("ab"), ElementsAre(3));
  EXPECT_THAT(t.encode("abcabbc"), ElementsAre(5, 3, 4));
  EXPECT_THAT(t.encode(""), IsEmpty());
  EXPECT_EQ(t.vocab_size(), 10);
  EXPECT_EQ(t.token_id("<new>"), 9);
  EXPECT_EQ(t.token_id("bc"), 4);
  EXPECT_EQ(t.token_id("d"), std::nullopt);
}

TEST(BpeTokenizer, UnknownBytesAreTokensOneTokenOrNothing) {
  Json json = small_bpe();
  EXPECT_THAT(from_bpe(json).encode("a\xc3\xa9"
                                    "b"),
              ElementsAre(0, 8, 8, 1));
  json["model"]["fuse_unk"] = true;
  EXPECT_THAT(from_bpe(json).encode("a\xc3\xa9"
                                    "b"),
              ElementsAre(0, 8, 1));
  json["model"].erase("unk_token");
  EXPECT_THAT(from_bpe(json).encode("a\xc3\xa9"
                                    "b"),
              ElementsAre(3));
}

TEST(BpeTokenizer, AWholeTokenNeedsNoMerges) {
  Json json = small_bpe();
  json["model"]["merges"] = Json::array({"a b"});
  EXPECT_THAT(from_bpe(json).encode("abc"), ElementsAre(3, 2));
  json["model"]["ignore_merges"] = true;
  EXPECT_THAT(from_bpe(json).encode("abc"), ElementsAre(5));
  EXPECT_THAT(from_bpe(json).encode("abcc"), ElementsAre(3, 2, 2));
}

TEST(BpeTokenizer, SpecialTokensStandAroundTheText) {
  Json json = small_bpe();
  json["post_processor"] = {
      {"type", "RobertaProcessing"}, {"cls", {"<s>", 6}}, {"sep", {"</s>", 7}}};
  const BpeTokenizer t = from_bpe(json);
  EXPECT_THAT(t.encode("a</s>b<new>"), ElementsAre(0, 7, 1, 9));
  EXPECT_THAT(t.encode_with_special("abc", 100), ElementsAre(6, 5, 7));
  EXPECT_THAT(t.encode_with_special("aaaa", 4), ElementsAre(6, 0, 0, 7));
  EXPECT_THAT(t.encode_with_special("aaaa", 2), ElementsAre(6, 7));
  EXPECT_THROW(t.encode_with_special("", 1), Error);
}

TEST(BpeTokenizer, LongTextsTakeNoLonger) {
  const BpeTokenizer t = from_bpe(small_bpe());
  std::string word;  // one word in which every merge moves the neighbours of others
  while (word.size() < BpeTokenizer::kMaxTextBytes) word += "abc";
  word.resize(BpeTokenizer::kMaxTextBytes);
  EXPECT_EQ(t.encode(word).size(), BpeTokenizer::kMaxTextBytes / 3 + 1);
  word += 'a';
  EXPECT_THROW(t.encode(word), Error);
}

TEST(BpeTokenizer, ReadsClipsFiles) {
  const test::TempFolder folder;
  const auto write = [&](const char* name, std::string_view text) {
    std::ofstream(folder.path() / name) << text;
  };
  write("vocab.json", R"({"a": 0, "b": 1, "b</w>": 2, "ab</w>": 3, "!</w>": 4,
                          "<|startoftext|>": 5, "<|endoftext|>": 6})");
  EXPECT_THROW(BpeTokenizer::from_file(folder.path()), Error);  // no merges
  write("merges.txt", "#version: 0.2\na b</w>\r\n");
  const BpeTokenizer plain = BpeTokenizer::from_file(folder.path());
  EXPECT_THAT(plain.encode_with_special("AB  ab!", 77), ElementsAre(5, 3, 3, 4, 6));
  // A checkpoint names the file.
  EXPECT_THAT(BpeTokenizer::from_file(folder.path() / "vocab.json").encode("ab!"),
              ElementsAre(3, 4));
  // A token that pads is special wherever it stands.
  write("vocab.json", R"({"a": 0, "b": 1, "b</w>": 2, "ab</w>": 3, "!</w>": 4,
                          "<|startoftext|>": 5, "<|endoftext|>": 6, "!": 7})");
  write("tokenizer_config.json", R"({"pad_token": {"content": "!"}})");
  EXPECT_THAT(BpeTokenizer::from_file(folder.path()).encode("ab!"), ElementsAre(3, 7));
  for (const char* config :
       {R"({"pad_token": "?"})", R"({"bos_token": "<s>"})", R"({"unk_token": 3})",
        R"({"tokenizer_class": "GPT2Tokenizer"})", R"({"added_tokens_decoder": {"x": {}}})",
        R"({"added_tokens_decoder": {"4": {"content": "!"}}})", "[1]", "{"}) {
    write("tokenizer_config.json", config);
    EXPECT_THROW(BpeTokenizer::from_file(folder.path()), Error) << config;
  }
}

TEST(BpeTokenizer, WhatItCannotDoIsRefusedByName) {
  const auto refusal = [](const char* pointer, const Json& value) -> std::string {
    Json json = small_bpe();
    json[Json::json_pointer(pointer)] = value;
    try {
      from_bpe(json);
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_THAT(refusal("/model/type", "WordPiece"), HasSubstr("WordPiece"));
  EXPECT_THAT(refusal("/model/dropout", 0.1), HasSubstr("dropout"));
  EXPECT_EQ(refusal("/model/dropout", 0.0), "accepted");
  EXPECT_THAT(refusal("/model/byte_fallback", true), HasSubstr("byte_fallback"));
  EXPECT_THAT(refusal("/model/continuing_subword_prefix", "##"), HasSubstr("##"));
  EXPECT_THAT(refusal("/model/unk_token", "<none>"), HasSubstr("<none>"));
  EXPECT_THAT(refusal("/model/merges/0", "b d"), HasSubstr("merge 0"));
  EXPECT_THAT(refusal("/model/merges/0", "b  c"), HasSubstr("merge 0"));
  EXPECT_THAT(refusal("/model/merges/0", "c a"), HasSubstr("make another"));
  EXPECT_THAT(refusal("/model/vocab/a", 1), HasSubstr("each once"));
  EXPECT_THAT(refusal("/model/vocab/a", 9), HasSubstr("0 to 8"));
  EXPECT_THAT(refusal("/normalizer", {{"type", "NFKC"}}), HasSubstr("NFKC"));
  EXPECT_THAT(refusal("/normalizer",
                      {{"type", "Replace"}, {"pattern", {{"Regex", "(a+)+b"}}}, {"content", " "}}),
              HasSubstr("(a+)+b"));
  EXPECT_THAT(refusal("/pre_tokenizer", nullptr), HasSubstr("ByteLevel"));
  EXPECT_THAT(refusal("/pre_tokenizer", {{"type", "Whitespace"}}), HasSubstr("Whitespace"));
  EXPECT_THAT(
      refusal("/pre_tokenizer",
              {{"type", "Split"}, {"pattern", {{"Regex", "(x+x+)+y"}}}, {"behavior", "Isolated"}}),
      HasSubstr("(x+x+)+y"));
  EXPECT_THAT(refusal("/post_processor", {{"type", "BertProcessing"}}),
              HasSubstr("BertProcessing"));
  EXPECT_THAT(refusal("/post_processor",
                      {{"type", "RobertaProcessing"}, {"cls", {"x", 10}}, {"sep", {"y", 0}}}),
              HasSubstr("id 10"));
  EXPECT_THAT(refusal("/added_tokens/0/single_word", true), HasSubstr("single words"));
  EXPECT_THAT(refusal("/added_tokens/0/id", 5), HasSubstr("expected 6"));
  EXPECT_THAT(refusal("/added_tokens/2/id", 10), HasSubstr("expected 9"));
  EXPECT_THAT(refusal("/added_tokens/1/content", "<s>"), HasSubstr("stated twice"));
}

std::vector<std::string_view> llama3_words(std::string_view text) {
  return split_words(text, SplitPattern::llama3);
}

TEST(BpeSplit, Llama3) {
  EXPECT_THAT(llama3_words("I'M 12345 cats!\n\n x"),
              ElementsAre("I", "'M", " ", "123", "45", " cats", "!\n\n", " x"));
  EXPECT_THAT(llama3_words("a  \n  b"), ElementsAre("a", "  \n", " ", " b"));
  EXPECT_THAT(llama3_words("   "), ElementsAre("   "));
}

TEST(BpeSplit, Gpt2AndClip) {
  EXPECT_THAT(split_words("I'M we'll 12x   !?", SplitPattern::gpt2),
              ElementsAre("I", "'", "M", " we", "'ll", " 12", "x", "  ", " !?"));
  const std::string_view text = "we'll 12 <|endoftext|>!";
  EXPECT_THAT(split_words(text, SplitPattern::clip),
              ElementsAre("we", "'ll", "1", "2", "<|", "endoftext", "|>!"));
  EXPECT_THAT(split_words(text, SplitPattern::clip_specials),
              ElementsAre("we", "'ll", "1", "2", "<|endoftext|>", "!"));
}

TEST(UnicodeForm, ComposesAndOrdersMarks) {
  EXPECT_EQ(nfc("e\xcc\x81"), "\xc3\xa9");
  EXPECT_EQ(nfc("\xe2\x84\xab"), "\xc3\x85");                              // the Angstrom sign
  EXPECT_EQ(nfc("q\xcc\x87\xcc\xa3"), "q\xcc\xa3\xcc\x87");                // dot below comes first
  EXPECT_EQ(nfc("\xe1\x84\x92\xe1\x85\xa1\xe1\x86\xab"), "\xed\x95\x9c");  // Hangul
  EXPECT_EQ(nfc("\xe0\xa5\x98"), "\xe0\xa4\x95\xe0\xa4\xbc");  // excluded from composition
  EXPECT_EQ(nfc(""), "");
  // 60,000 marks in the wrong order: exchanging neighbours would take a billion steps.
  std::string marks = "q", ordered = "q";
  for (int i = 0; i < 30000; ++i) marks += "\xcc\x87";
  for (int i = 0; i < 30000; ++i) marks += "\xcc\xa3";
  for (int i = 0; i < 30000; ++i) ordered += "\xcc\xa3";
  for (int i = 0; i < 30000; ++i) ordered += "\xcc\x87";
  EXPECT_EQ(nfc(marks), ordered);
}

TEST(UnicodeForm, LowersCharacterByCharacter) {
  EXPECT_EQ(lowercased("ABC \xce\xa3\xce\x91\xce\xa3"), "abc \xcf\x83\xce\xb1\xcf\x83");
  EXPECT_EQ(lowercased("\xc4\xb0"), "i\xcc\x87");
}

}  // namespace
}  // namespace lacuna
