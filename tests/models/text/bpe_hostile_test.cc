// SPDX-License-Identifier: Apache-2.0
// Damaged and malicious byte-pair tokenizers end in lacuna::Error or in a tokenizer that works.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "lacuna/core/error.h"
#include "lacuna/models/text/bpe_tokenizer.h"
#include "tests/support/repository.h"

namespace lacuna {
namespace {

using Json = nlohmann::json;

Json good_file(const char* name) {
  std::ifstream in(test::test_data() / "tokenizer/bpe" / name, std::ios::binary);
  return Json::parse(in);
}

// Whether it works; then ids are in range. A refusal is one short line.
bool works(const std::string& text) {
  try {
    const BpeTokenizer tokenizer(parse_bpe_json(text, "fuzz"));
    for (const char* prompt :
         {"the red cat's, \xe7\x8c\xab e\xcc\x82\xcc\x81 12345 <|eot_id|>\n <pad> A</w>",
          "\xff\x80", ""}) {
      for (const int32_t id : tokenizer.encode_with_special(prompt, 128)) {
        EXPECT_GE(id, 0);
        EXPECT_LT(id, tokenizer.vocab_size());
      }
    }
    return true;
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
    EXPECT_LT(std::string(error.what()).size(), 500u) << error.what();
    return false;
  }
}

TEST(BpeHostile, WrongValuesEverywhere) {
  const Json replacements[] = {nullptr,
                               true,
                               -1,
                               3,
                               1e300,
                               4294967296u,
                               "",
                               "a b",
                               "\n",
                               Json::array(),
                               Json::object(),
                               Json::array({1, "x"}),
                               std::string(5000, 'a')};
  int accepted = 0, refused = 0;
  // The fuzzer's seeds: small files of the three forms, behind the byte that tells the parser.
  for (const char* name : {"valid_llama3", "valid_clip", "valid_gpt2"}) {
    std::ifstream in(test::repository() / "tests/fuzz/corpus/bpe" / name, std::ios::binary);
    in.ignore(1);
    const Json good = Json::parse(in);
    ASSERT_TRUE(works(good.dump())) << name;
    const Json flat = good.flatten();
    for (const auto& [pointer, value] : flat.items()) {
      for (const Json& replacement : replacements) {
        Json bad = good;
        bad[Json::json_pointer(pointer)] = replacement;
        ++(works(bad.dump()) ? accepted : refused);
      }
    }
  }
  EXPECT_GT(accepted, 200);
  EXPECT_GT(refused, 1000);
}

TEST(BpeHostile, CutAnywhere) {
  const std::string text = good_file("gpt2.tokenizer.json").dump();
  for (size_t n = 0; n < text.size(); n += 97) EXPECT_FALSE(works(text.substr(0, n)));
}

TEST(BpeHostile, WhatIsTooMuchIsRefused) {
  Json json = good_file("gpt2.tokenizer.json");
  json["model"]["vocab"][std::string(5000, 'x')] = json["model"]["vocab"].size();
  EXPECT_FALSE(works(json.dump()));
  json = good_file("gpt2.tokenizer.json");
  for (int i = 0; i < 17; ++i) {
    const Json inner = {{"type", "NFC"}};
    json["normalizer"]["type"] = "Sequence";
    json["normalizer"]["normalizers"].push_back(inner);
  }
  EXPECT_FALSE(works(json.dump()));
  json = good_file("gpt2.tokenizer.json");
  for (int i = 0; i < 40; ++i) {
    json["pre_tokenizer"] = {{"type", "Sequence"},
                             {"pretokenizers", Json::array({json["pre_tokenizer"]})}};
  }
  EXPECT_FALSE(works(json.dump()));
  json = good_file("gpt2.tokenizer.json");
  const size_t size = json["model"]["vocab"].size();
  for (size_t i = 0; i < 20; ++i) {
    Json token = json["added_tokens"][0];
    token["content"] = std::string(4000, 'a') + std::to_string(i);
    token["id"] = size + i;
    json["added_tokens"].push_back(token);
  }
  EXPECT_FALSE(works(json.dump()));
}

// One merge for each neighbour pair of one token with itself, and texts of it alone.
TEST(BpeHostile, TextsThatMergeAllTheWayAreFast) {
  Json json = good_file("gpt2.tokenizer.json");
  Json& model = json["model"];
  model["vocab"] = {{"<unk>", 0}};
  model["merges"] = Json::array();
  std::string token = "a";
  for (int i = 1; i <= 12; ++i) {
    model["vocab"][token] = i;
    if (i > 1) {
      const std::string half = token.substr(token.size() / 2);
      model["merges"].push_back(half + " " + half);
    }
    token += token;
  }
  json["pre_tokenizer"]["add_prefix_space"] = false;
  const BpeTokenizer tokenizer(parse_bpe_json(json.dump(), "test"));
  EXPECT_EQ(tokenizer.encode(std::string(BpeTokenizer::kMaxTextBytes, 'a')).size(),
            BpeTokenizer::kMaxTextBytes >> 11);
}

}  // namespace
}  // namespace lacuna
