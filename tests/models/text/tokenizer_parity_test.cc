// SPDX-License-Identifier: Apache-2.0
// Ids equal to those of transformers. Fixtures: tools/parity/tokenizer_fixture.py.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "lacuna/core/error.h"
#include "lacuna/models/text/tokenizer.h"
#include "tests/support/repository.h"

namespace lacuna {
namespace {

using Json = nlohmann::json;
namespace fs = std::filesystem;

constexpr int32_t kExtraIds = 10;  // as in the script
constexpr int64_t kLong = 1 << 20;

// Another folder for live parity with bigger fixtures.
fs::path data_file(const std::string& name) {
  const char* folder = std::getenv("LACUNA_TOKENIZER_DATA");
  return (folder != nullptr ? fs::path(folder) : test::test_data() / "tokenizer") / name;
}

std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  LACUNA_CHECK(in.good() && !text.str().empty(), "{}: cannot be read", path.string());
  return text.str();
}

// The pipeline that transformers 5 builds from the same vocabulary.
std::string as_version_5(const std::string& text) {
  Json json = Json::parse(text);
  json["normalizer"] = Json(json["normalizer"]["normalizers"][0]);
  const Json metaspace = json["pre_tokenizer"];
  json["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers", Json::array({{{"type", "WhitespaceSplit"}}, metaspace})}};
  return json.dump();
}

// What must be configured to get the ids that the script calls `variant`.
Tokenizer make_tokenizer(const std::string& name, const std::string& variant) {
  const std::string model = read_file(data_file(name + ".spiece.model"));
  const std::string json = read_file(data_file(name + ".tokenizer.json"));
  if (variant == "slow") return Tokenizer(parse_spiece_model(model, "m", kExtraIds));
  if (variant == "slow_other") return Tokenizer(parse_spiece_model(model, "m", kExtraIds), false);
  if (variant == "fast") return Tokenizer(parse_tokenizer_json(json, "j"));
  if (variant == "fast_other") return Tokenizer(parse_tokenizer_json(json, "j"), true);
  if (variant == "fast5") return Tokenizer(parse_tokenizer_json(as_version_5(json), "j"));
  fail("unknown variant {}", variant);
}

class TokenizerParity : public ::testing::TestWithParam<const char*> {};

TEST_P(TokenizerParity, EveryVariantGivesTheReferenceIds) {
  const std::string name = GetParam();
  const Json fixture = Json::parse(read_file(data_file(name + ".prompts.json")));
  const Json& prompts = fixture["prompts"];
  ASSERT_GE(prompts.size(), 100u);
  for (size_t v = 0; v < fixture["variants"].size(); ++v) {
    const auto variant = fixture["variants"][v].get<std::string>();
    const Tokenizer tokenizer = make_tokenizer(name, variant);
    int ties = 0, different = 0;
    for (const Json& row : prompts) {
      const auto text = row[0].get<std::string>();
      auto expected = row[1][row[2][v].get<size_t>()].get<std::vector<int32_t>>();
      std::vector<int32_t> ids = tokenizer.encode(text, kLong);
      if (ids == expected) continue;
      const std::string report =
          fmt::format("{} {} {}\n given {}\n expected {}", name, variant,
                      row[0].dump(-1, ' ', true), Json(ids).dump(), Json(expected).dump());
      // The same pieces in another order have the same score: a word three times in a row without
      // spaces, cut as (w, ww) or (ww, w). Rounding decides, in f32 here and f64 in `tokenizers`.
      std::sort(ids.begin(), ids.end());
      std::sort(expected.begin(), expected.end());
      if (ids == expected) {
        ++ties;
      } else if (++different <= 5) {
        ADD_FAILURE() << report;
      }
    }
    EXPECT_EQ(different, 0) << name << " " << variant;
    EXPECT_LE(ties, static_cast<int>(prompts.size() / 5000)) << name << " " << variant;
    RecordProperty(variant + "_equal", static_cast<int>(prompts.size()) - ties - different);
  }
}

INSTANTIATE_TEST_SUITE_P(Fixtures, TokenizerParity, ::testing::Values("bytes", "plain"));

}  // namespace
}  // namespace lacuna
