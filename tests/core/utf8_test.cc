// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/utf8.h"

#include <gtest/gtest.h>

namespace lacuna {
namespace {

TEST(Utf8, DecodesAndRepairs) {
  EXPECT_EQ(repaired_utf8("a\xc3\xa9\xe2\x96\x81\xf0\x9f\x90\xb1"),
            "a\xc3\xa9\xe2\x96\x81\xf0\x9f\x90\xb1");
  const std::string bad = "\xef\xbf\xbd";  // U+FFFD
  EXPECT_EQ(repaired_utf8("\xff"), bad);
  EXPECT_EQ(repaired_utf8("\xc3"), bad);
  EXPECT_EQ(repaired_utf8("\xc0\xaf"), bad + bad);                      // overlong
  EXPECT_EQ(repaired_utf8("\xe0\x80\xaf"), bad + bad + bad);            // overlong
  EXPECT_EQ(repaired_utf8("\xed\xa0\x80"), bad + bad + bad);            // surrogate
  EXPECT_EQ(repaired_utf8("\xf4\x90\x80\x80"), bad + bad + bad + bad);  // past U+10FFFF
  EXPECT_EQ(repaired_utf8("\xe2\x96"
                          "a"),
            bad + bad + "a");
  EXPECT_TRUE(is_valid_utf8(bad));
  EXPECT_FALSE(is_valid_utf8("a\x80"));
}

}  // namespace
}  // namespace lacuna
