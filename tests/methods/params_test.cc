// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "tests/methods/fixtures.h"

namespace lacuna::test {
namespace {

constexpr ParamSpec kSpecs[] = {{"ratio", 0.5, 0.0, 1.0, false, "a share"},
                                {"count", 3, 1, 8, true, "a number of things"}};

TEST(Params, DefaultsScalarsAndHeads) {
  Params params(kSpecs);
  EXPECT_EQ(params.get("ratio"), 0.5);
  EXPECT_EQ(params.get_int("count", 7), 3) << "a scalar serves every head";
  params.set_per_head("ratio", {0.25, 0.75});
  EXPECT_TRUE(params.per_head("ratio"));
  EXPECT_EQ(params.get("ratio", 1), 0.75);
  EXPECT_THAT(error_of([&] { params.get("ratio", 2); }),
              testing::HasSubstr("2 values, expected one for head 2"));
  params.set("ratio", 1.0);
  EXPECT_FALSE(params.per_head("ratio"));
}

TEST(Params, ErrorsNameWhatIsAllowed) {
  Params params(kSpecs);
  EXPECT_THAT(error_of([&] { params.set("ration", 0.1); }),
              testing::HasSubstr("'ration', expected one of ratio, count"));
  EXPECT_THAT(error_of([&] { params.set("ratio", 1.5); }),
              testing::HasSubstr("ratio: 1.5, expected a number in 0 to 1"));
  EXPECT_THAT(error_of([&] { params.set("count", 2.5); }),
              testing::HasSubstr("count: 2.5, expected a whole number in 1 to 8"));
  EXPECT_NE(error_of([&] { params.set("ratio", std::nan("")); }), "");
  EXPECT_NE(error_of([&] { params.set_per_head("count", {1, 2, 9}); }), "");
  EXPECT_NE(error_of([&] { params.set_per_head("count", {}); }), "");
  EXPECT_EQ(params.get("count"), 3) << "a rejected value changes nothing";
}

TEST(Registry, NamesAreUniqueAndFound) {
  std::set<std::string_view> names;
  for (const Method* method : all_methods()) {
    EXPECT_TRUE(names.insert(method->name()).second) << method->name();
    EXPECT_EQ(&find_method(method->name()), method);
    EXPECT_FALSE(method->summary().empty());
  }
  EXPECT_THAT(error_of([] { find_method("magic"); }),
              testing::HasSubstr("'magic', expected one of dense, window, radial, xattention"));
}

}  // namespace
}  // namespace lacuna::test
