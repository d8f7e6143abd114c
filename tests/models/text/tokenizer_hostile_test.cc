// SPDX-License-Identifier: Apache-2.0
// Damaged and malicious tokenizer files end in lacuna::Error or in a tokenizer that works.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "lacuna/core/error.h"
#include "lacuna/models/text/tokenizer.h"
#include "tests/support/repository.h"
#include "tests/support/temp_folder.h"

namespace lacuna {
namespace {

using Json = nlohmann::json;

std::string read_file(const std::string& name) {
  std::ifstream in(test::test_data() / "tokenizer" / name, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t below(uint64_t n) {
    state_ = state_ * 6364136223846793005ull + 1442695040888963407ull;
    return (state_ >> 33) % n;
  }

 private:
  uint64_t state_;
};

std::string mutated(std::string bytes, Random& random) {
  for (uint64_t i = 0; i <= random.below(4) && !bytes.empty(); ++i) {
    const size_t at = random.below(bytes.size());
    switch (random.below(5)) {
      case 0:
        bytes[at] = static_cast<char>(random.below(256));
        break;
      case 1:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << random.below(8)));
        break;
      case 2:
        bytes.erase(at, 1 + random.below(20));
        break;
      case 3:
        bytes.insert(at, bytes.substr(random.below(bytes.size()), 1 + random.below(20)));
        break;
      default:
        bytes.resize(at);
        break;
    }
  }
  return bytes;
}

struct Outcome {
  int errors = 0, works = 0;
};

// What works must give ids within its vocabulary.
template <typename Parse>
Outcome try_mutations(const std::string& good, int rounds, uint64_t seed, const Parse& parse) {
  Random random(seed);
  Outcome outcome;
  for (int i = 0; i < rounds; ++i) {
    const std::string bytes = mutated(good, random);
    try {
      const Tokenizer tokenizer(parse(bytes));
      for (const char* text : {"the red cat, \xe7\x8c\xab e\xcc\x82\xcc\x81 <extra_id_0> a</s>",
                               "\xef\xbc\xa6\xff\x80 \xf0\x9f\x90\xb1", ""}) {
        for (const int32_t id : tokenizer.encode(text)) {
          EXPECT_GE(id, 0);
          EXPECT_LT(id, tokenizer.vocab_size());
        }
      }
      ++outcome.works;
    } catch (const Error& error) {
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
      EXPECT_LT(std::string(error.what()).size(), 1000u);
      ++outcome.errors;
    }
  }
  return outcome;
}

TEST(TokenizerHostile, MutatedSpieceModels) {
  const Outcome outcome =
      try_mutations(read_file("plain.spiece.model"), 400, 1,
                    [](const std::string& bytes) { return parse_spiece_model(bytes, "fuzz"); });
  EXPECT_GT(outcome.errors, 100);
  EXPECT_GT(outcome.works, 20);
}

TEST(TokenizerHostile, MutatedTokenizerJson) {
  const Outcome outcome =
      try_mutations(read_file("plain.tokenizer.json"), 400, 2,
                    [](const std::string& text) { return parse_tokenizer_json(text, "fuzz"); });
  EXPECT_GT(outcome.errors, 100);
  EXPECT_GT(outcome.works, 20);
}

// Valid JSON with one value replaced by another of the wrong kind or size.
TEST(TokenizerHostile, WrongTypesEverywhereInTokenizerJson) {
  Json good = Json::parse(read_file("plain.tokenizer.json"));
  Json& vocab = good["model"]["vocab"];
  vocab.erase(vocab.begin() + 50, vocab.end());
  Json& added = good["added_tokens"];
  added.erase(added.begin() + 3, added.end());
  const Json flat = good.flatten();
  const Json replacements[] = {nullptr,
                               true,
                               -1,
                               1e300,
                               "x",
                               Json::array(),
                               Json::object(),
                               18446744073709551615ull,
                               std::string("a\0b", 3),
                               std::string(70000, 'z')};
  int errors = 0, tried = 0;
  for (const auto& [pointer, value] : flat.items()) {
    for (const Json& replacement : replacements) {
      Json bad = good;
      bad[Json::json_pointer(pointer)] = replacement;
      ++tried;
      try {
        Tokenizer(parse_tokenizer_json(bad.dump(), "t")).encode("the cat <pad>");
      } catch (const Error&) {
        ++errors;
      }
    }
  }
  EXPECT_GT(tried, 1000);
  EXPECT_GT(errors, tried / 2);
}

void expect_refused(const Json& json) {
  EXPECT_THROW(Tokenizer(parse_tokenizer_json(json.dump(), "t")).encode("aaaa"), Error)
      << json.dump().substr(0, 300);
}

Json minimal() {
  return {{"pre_tokenizer", {{"type", "Metaspace"}, {"replacement", "\xe2\x96\x81"}}},
          {"model",
           {{"type", "Unigram"},
            {"unk_id", 0},
            {"vocab", Json::array({{"<unk>", 0.0}, {"</s>", 0.0}, {"a", -1.0}})}}}};
}

TEST(TokenizerHostile, VocabulariesThatWouldBreakTheLibrary) {
  EXPECT_NO_THROW(Tokenizer(parse_tokenizer_json(minimal().dump(), "t")).encode("a"));
  const Json entries[] = {{"", -1.0},
                          {"a", -2.0},  // twice
                          {std::string("x\0y", 3), -1.0},
                          {std::string(513, 'x'), -1.0},
                          {"x", 1e30},
                          {"x", "y"},
                          {"x"},
                          {{"x", 1.0}}};
  for (const Json& entry : entries) {
    Json json = minimal();
    json["model"]["vocab"].push_back(entry);
    expect_refused(json);
  }
  for (const Json& unk : {Json(7), Json(-1), Json("x"), Json(1.5)}) {
    Json json = minimal();
    json["model"]["unk_id"] = unk;
    expect_refused(json);
  }
  Json json = minimal();
  json["model"]["vocab"] = Json::array();
  expect_refused(json);
}

// A few bytes of file must not turn a prompt into gigabytes.
TEST(TokenizerHostile, ReplacementBombsAreStopped) {
  Json json = minimal();
  Json steps = Json::array();
  for (int i = 0; i < 20; ++i) {
    steps.push_back({{"type", "Replace"},
                     {"pattern", {{"String", "a"}}},
                     {"content", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}});
  }
  json["normalizer"] = {{"type", "Sequence"}, {"normalizers", steps}};
  expect_refused(json);
}

TEST(TokenizerHostile, AddedTokensMayNotGrowTogetherEither) {
  Json json = minimal();
  json["normalizer"] = {
      {"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", std::string(8000, 'a')}};
  json["added_tokens"] = Json::array();
  for (int i = 0; i < 2; ++i) {  // 3.2 MB each
    json["added_tokens"].push_back(
        {{"content", std::string(400, 'a')}, {"id", i}, {"normalized", true}});
  }
  expect_refused(json);
}

// Readers and printers of JSON recurse, so depth is limited before either sees it.
TEST(TokenizerHostile, DeepAndHugeJson) {
  EXPECT_THROW(parse_tokenizer_json(std::string(200000, '['), "t"), Error);
  const std::string deep = std::string(200000, '[') + std::string(200000, ']');
  const std::string good = minimal().dump();
  for (const char* value : {"0.0", "\"a\"", "\"Unigram\"", "0,", "\"\xe2\x96\x81\""}) {
    std::string text = good;
    const size_t at = text.find(value);
    ASSERT_NE(at, std::string::npos) << value;
    text.replace(at, std::string(value).size() - (value[1] == ',' ? 1 : 0), deep);
    EXPECT_THROW(parse_tokenizer_json(text, "t"), Error) << value;
  }
  std::string nested = "{\"type\":\"Strip\"}";
  for (int i = 0; i < 20; ++i) {
    nested = "{\"type\":\"Sequence\",\"normalizers\":[" + nested + "]}";
  }
  Json json = minimal();
  json["normalizer"] = Json::parse(nested);
  expect_refused(json);
  EXPECT_THROW(parse_tokenizer_json("", "t"), Error);
  EXPECT_THROW(parse_tokenizer_json("{}", "t"), Error);
  EXPECT_THROW(parse_tokenizer_json("[]", "t"), Error);
  EXPECT_THROW(parse_tokenizer_json("{\"model\":\"\xff\"}", "t"), Error);
}

TEST(TokenizerHostile, ProtobufEdges) {
  const auto refused = [](std::string_view bytes) {
    EXPECT_THROW(parse_spiece_model(bytes, "m"), Error)
        << Json(std::string(bytes)).dump(-1, ' ', true, Json::error_handler_t::replace);
  };
  refused("");
  refused(std::string_view("\x0a", 1));                         // a length without bytes
  refused("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01");      // length 2^64 - 1
  refused("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff");  // endless varint
  refused("\x0b\x0c");                                          // groups
  refused(std::string_view("\x08\x01", 2));                     // pieces as a number
  refused(std::string_view("\x00\x00", 2));                     // field number 0
  refused("not a model at all");
  const std::string good = read_file("plain.spiece.model");
  EXPECT_NO_THROW(parse_spiece_model(good, "m"));
  EXPECT_THROW(parse_spiece_model(good, "m", -1), Error);
  EXPECT_THROW(parse_spiece_model(good, "m", 1 << 30), Error);
  refused(good + good);  // every piece twice
}

// Memory is bounded while the file is read, not when all of it is there: what follows the last
// piece that may be is not looked at.
TEST(TokenizerHostile, EmptyPiecesDoNotFillTheMemory) {
  std::string bytes;
  for (size_t i = 0; i <= kMaxPieces; ++i) bytes += std::string_view("\x0a\x00", 2);
  bytes += "\x0a\x7f";  // a length without bytes
  try {
    parse_spiece_model(bytes, "m");
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("more than 2097152 pieces"), std::string::npos)
        << error.what();
  }
}

TEST(TokenizerHostile, JsonIsNotMuchLargerThanARealTokenizer) {
  const std::string spaces((size_t{64} << 20) + 1, ' ');
  try {
    parse_tokenizer_json(spaces, "t");
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "t: 67108865 bytes, expected at most 67108864");
  }
}

TEST(TokenizerHostile, APointerOfGitLfsIsNamed) {
  const test::TempFolder folder;
  for (const char* name : {"tokenizer.json", "spiece.model"}) {
    std::ofstream(folder.path() / name) << "version https://git-lfs.github.com/spec/v1\nsize 9\n";
    try {
      read_unigram_model(folder.path() / name);
      FAIL() << "accepted";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("git lfs pull"), std::string::npos) << error.what();
    }
  }
}

TEST(TokenizerHostile, LibraryStaysQuiet) {
  ::testing::internal::CaptureStderr();
  ::testing::internal::CaptureStdout();
  const Tokenizer tokenizer(parse_tokenizer_json(minimal().dump(), "t"));
  tokenizer.encode("a b c \xff");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
  EXPECT_EQ(::testing::internal::GetCapturedStdout(), "");
}

}  // namespace
}  // namespace lacuna
