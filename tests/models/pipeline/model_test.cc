// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/pipeline/model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "tests/support/error_of.h"
#include "tests/support/tiny_checkpoint.h"

namespace lacuna::test {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

std::string open_error(std::vector<fs::path> paths) {
  return error_of([&] { Model::open(paths); });
}

void replace_in(const fs::path& path, const std::string& from, const std::string& to) {
  std::ifstream in(path);
  std::string text(std::istreambuf_iterator<char>(in), {});
  const size_t at = text.find(from);
  ASSERT_NE(at, std::string::npos) << from;
  std::ofstream(path) << text.replace(at, from.size(), to);
}

TEST(Model, AConfigOfFewerLayersThanTheWeightsHaveIsRefused) {
  const TinyCheckpoint checkpoint({.layers = 2});
  EXPECT_EQ(open_error({checkpoint.folder()}), "");
  replace_in(checkpoint.folder() / "transformer/config.json", "\"num_layers\": 2",
             "\"num_layers\": 1");
  EXPECT_THAT(open_error({checkpoint.folder()}),
              AllOf(HasSubstr("config.json: `num_layers` is 1"), HasSubstr("blocks.1.")));
}

}  // namespace
}  // namespace lacuna::test
