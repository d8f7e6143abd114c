// SPDX-License-Identifier: Apache-2.0
// Ids equal to those of transformers. Fixtures: tools/parity/bpe_fixture.py.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "lacuna/core/error.h"
#include "lacuna/models/text/bpe_tokenizer.h"
#include "tests/support/repository.h"

namespace lacuna {
namespace {

using Json = nlohmann::json;
namespace fs = std::filesystem;

constexpr int64_t kLong = 1 << 20;
constexpr int64_t kCut = 12;  // as in the script

// Another folder for live parity with bigger fixtures.
fs::path data_folder() {
  const char* folder = std::getenv("LACUNA_BPE_DATA");
  return folder != nullptr ? fs::path(folder) : test::test_data() / "tokenizer/bpe";
}

Json read_json(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  LACUNA_CHECK(in.good(), "{}: cannot be read", path.string());
  return Json::parse(in);
}

uint32_t fnv1a(const std::vector<int32_t>& ids) {
  uint32_t value = 0x811c9dc5u;
  for (const int32_t id : ids) {
    for (int shift = 0; shift < 32; shift += 8) {
      value = (value ^ (static_cast<uint32_t>(id) >> shift & 0xffu)) * 0x01000193u;
    }
  }
  return value;
}

struct Form {
  const char* name;
  size_t variant;  // as the script counts
  const char* file;
};

class BpeParity : public ::testing::TestWithParam<Form> {};

TEST_P(BpeParity, KeptIdsAreTheReferences) {
  const BpeTokenizer tokenizer = BpeTokenizer::from_file(data_folder() / GetParam().file);
  const Json fixture = read_json(data_folder() / "prompts.json");
  int different = 0;
  for (const Json& row : fixture["prompts"]) {
    const auto text = row[0].get<std::string>();
    const Json& expected = row[1][GetParam().variant];
    const std::vector<int32_t> ids = tokenizer.encode_with_special(text, kLong);
    const std::vector<int32_t> cut = tokenizer.encode_with_special(text, kCut);
    if (Json(ids) == expected && Json(cut) == row[2][GetParam().variant]) continue;
    if (++different <= 5) {
      ADD_FAILURE() << row[0].dump(-1, ' ', true) << "\n given " << Json(ids).dump()
                    << "\n expected " << expected.dump() << "\n cut " << Json(cut).dump();
    }
  }
  EXPECT_EQ(different, 0);
  EXPECT_GE(fixture["prompts"].size(), 50u);
}

TEST_P(BpeParity, HashesOfIdsAreTheReferences) {
  const BpeTokenizer tokenizer = BpeTokenizer::from_file(data_folder() / GetParam().file);
  const Json hashes = read_json(data_folder() / "prompts.json")["hashes"];
  if (hashes.empty()) GTEST_SKIP() << "a fixture that keeps all ids";
  const Json prompts = read_json(data_folder() / "../bytes.prompts.json")["prompts"];
  ASSERT_EQ(hashes.size(), prompts.size());
  int different = 0;
  for (size_t i = 0; i < prompts.size(); ++i) {
    const auto text = prompts[i][0].get<std::string>();
    const std::vector<int32_t> ids = tokenizer.encode_with_special(text, kLong);
    if (fnv1a(ids) == hashes[i][GetParam().variant].get<uint32_t>()) continue;
    if (++different <= 5) {
      ADD_FAILURE() << prompts[i][0].dump(-1, ' ', true) << "\n given " << Json(ids).dump();
    }
  }
  EXPECT_EQ(different, 0);
}

INSTANTIATE_TEST_SUITE_P(Forms, BpeParity,
                         ::testing::Values(Form{"llama3", 0, "llama3.tokenizer.json"},
                                           Form{"clip_json", 1, "clip.tokenizer.json"},
                                           Form{"clip_files", 1, "clip"},
                                           Form{"gpt2", 2, "gpt2.tokenizer.json"}),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace lacuna
