// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/text/prompt.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>

#include "lacuna/models/text/html_entities.h"

namespace lacuna {
namespace {

// Expected values are those of Python 3.11's html.unescape.
TEST(UnescapeHtml, AgreesWithPython) {
  const std::pair<std::string, std::string> cases[] = {
      {"a &amp; b", "a & b"},
      {"&lt;&gt;&quot;&apos;", "<>\"'"},
      {"&eacute;t&eacute", "\xc3\xa9t\xc3\xa9"},
      {"&copy2020 &copy;",
       "\xc2\xa9"
       "2020 \xc2\xa9"},
      {"&notit; &notin;",
       "\xc2\xac"
       "it; \xe2\x88\x89"},
      {"&alpha &alpha;", "&alpha \xce\xb1"},  // needs its semicolon
      {"&#65;&#x42;&#X43&#68", "ABCD"},
      {"&#128;&#x99;", "\xe2\x82\xac\xe2\x84\xa2"},  // Windows-1252
      {"&#0;&#xD800;&#x110000;", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
      {"a&#1;b&#xFFFE;c&#127;", "abc"},
      {"&#99999999999999999999;", "\xef\xbf\xbd"},
      {"&#x;&#;&#&", "&#x;&#;&#&"},
      {"&unknown; & &&amp;", "&unknown; & &&"},
      {"&ampamp;", "&amp;"},
      {"&AMP;&Amp;", "&&Amp;"},
      {"", ""},
  };
  for (const auto& [text, expected] : cases) EXPECT_EQ(unescape_html(text), expected) << text;
}

TEST(UnescapeHtml, TableIsSorted) {
  EXPECT_TRUE(
      std::is_sorted(std::begin(kHtmlEntities), std::end(kHtmlEntities),
                     [](const HtmlEntity& a, const HtmlEntity& b) { return a.name < b.name; }));
  EXPECT_EQ(std::size(kHtmlEntities), 259u);
}

TEST(CleanPrompt, CollapsesSpaceAndUnescapesTwice) {
  EXPECT_EQ(clean_prompt("  a\t\n b \xe3\x80\x80 c\xc2\xa0"), "a b c");
  EXPECT_EQ(clean_prompt("&amp;lt;b&amp;gt;"), "<b>");
  EXPECT_EQ(clean_prompt("&amp;amp;amp;"), "&amp;");  // twice, not three times
  EXPECT_EQ(clean_prompt("a&nbsp;&#32;b"), "a b");
  EXPECT_EQ(clean_prompt(" \x1c \xe2\x80\xa8 "), "");
  EXPECT_EQ(clean_prompt(""), "");
}

TEST(CleanPrompt, StraightensQuotesAndRepairsBytes) {
  EXPECT_EQ(clean_prompt("\xe2\x80\x9cit\xe2\x80\x99s\xe2\x80\x9d"), "\"it's\"");
  EXPECT_EQ(clean_prompt("a\xff"
                         "b"),
            "a\xef\xbf\xbd"
            "b");
}

}  // namespace
}  // namespace lacuna
