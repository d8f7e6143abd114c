// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/printable.h"

#include <gtest/gtest.h>

namespace lacuna {
namespace {

TEST(Printable, EscapesWhatATerminalObeys) {
  EXPECT_EQ(printable("a\x1b[2J\a\b\r\x7f"), "a\\x1b[2J\\x07\\x08\\r\\x7f");
  EXPECT_EQ(printable(std::string_view("\0x", 2)), "\\x00x");
  EXPECT_EQ(printable("\xc2\x9b"
                      "31m\xc2\x80\xc2\x9f"),
            "\\u009b31m\\u0080\\u009f");
  EXPECT_EQ(printable("\xe2\x80\xa8\xe2\x80\xa9\xe2\x80\xaa\xe2\x80\xae\xe2\x81\xa6\xe2\x81\xa9"),
            "\\u2028\\u2029\\u202a\\u202e\\u2066\\u2069");
}

TEST(Printable, KeepsAllOtherText) {
  // Up to U+10FFFF, next to what is escaped, and a replacement character that was there.
  for (const char* text :
       {"", "plain \\ text \\x1b", "caf\xc3\xa9 \xe7\x8c\xab \xf0\x9f\x90\xb1 ~ ",
        "\xc2\xa0\xe2\x80\xa7\xe2\x80\xaf\xe2\x81\xa5\xe2\x81\xaa\xef\xbf\xbd",
        "\xd7\xa9\xd7\x9c\xf4\x8f\xbf\xbf"}) {
    EXPECT_EQ(printable(text), text);
    EXPECT_EQ(one_line(text), text);
  }
}

TEST(Printable, EscapesBytesThatAreNotUtf8) {
  EXPECT_EQ(printable("\x9b"
                      "31m"),
            "\\x9b31m");  // the same control character to a terminal of 8 bits
  EXPECT_EQ(printable("\xc3("), "\\xc3(");
  EXPECT_EQ(printable("a\xe2\x96"), "a\\xe2\\x96");
  EXPECT_EQ(printable("\xc0\x9b"), "\\xc0\\x9b");
}

TEST(Printable, KeepsLinesOnlyWhereThereMayBeSeveral) {
  EXPECT_EQ(printable("a\n\tb\n"), "a\n\tb\n");
  EXPECT_EQ(one_line("a\n\tb\r\n"), "a\\n\\tb\\r\\n");
  EXPECT_EQ(one_line("a\x1b\n\xff"), "a\\x1b\\n\\xff");
  EXPECT_EQ(printable(one_line("\n\x1b")), one_line("\n\x1b"));
}

}  // namespace
}  // namespace lacuna
