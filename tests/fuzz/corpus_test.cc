// SPDX-License-Identifier: Apache-2.0
// Replays the fuzzers' corpus: every input either parses or throws lacuna::Error.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "tests/fuzz/parsers.h"
#include "tests/support/repository.h"

namespace lacuna::fuzz {
namespace {

namespace fs = std::filesystem;

std::vector<uint8_t> read(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

class Corpus : public testing::TestWithParam<Parser> {};

TEST_P(Corpus, EveryInputParsesOrThrowsError) {
  const Parser& parser = GetParam();
  const fs::path folder = test::repository() / "tests/fuzz/corpus" / parser.name;
  int accepted = 0, refused = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    const std::vector<uint8_t> input = read(entry.path());
    SCOPED_TRACE(entry.path().filename().string());
    bool ok = false;
    EXPECT_NO_THROW(ok = parser.run(input));
    ++(ok ? accepted : refused);
    // Valid seeds are named so; they guard against a parser that refuses everything.
    if (entry.path().filename().string().starts_with("valid")) {
      EXPECT_TRUE(ok);
    }
    // Cut anywhere, the input is still only a question of Error.
    const size_t step = input.size() / 16 + 1;
    for (size_t n = 0; n < input.size(); n += step) {
      EXPECT_NO_THROW(parser.run(std::span(input).first(n)));
    }
  }
  EXPECT_GT(accepted, 0) << folder;
  EXPECT_GT(refused, 0) << folder;
}

INSTANTIATE_TEST_SUITE_P(Parsers, Corpus, testing::ValuesIn(kParsers),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace lacuna::fuzz
