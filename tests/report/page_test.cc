// SPDX-License-Identifier: Apache-2.0
#include "lacuna/report/page.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "lacuna/core/error.h"
#include "tests/support/temp_folder.h"

namespace lacuna {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;
using testing::HasSubstr;
using testing::Not;

class PageTest : public testing::Test {
 protected:
  std::string content() const {
    std::ifstream in(path_, std::ios::binary);
    std::ostringstream text;
    text << in.rdbuf();
    return text.str();
  }
  std::string page(const Json& report) {
    write_report(path_, report);
    return content();
  }
  int64_t entries() const { return std::distance(fs::directory_iterator(directory_), {}); }

  static int count(std::string_view text, std::string_view what) {
    int found = 0;
    for (size_t at = 0; (at = text.find(what, at)) != text.npos; at += what.size()) ++found;
    return found;
  }
  // The text of the data element.
  static std::string data(const std::string& page) {
    const std::string open = "<script type=\"application/json\" id=\"report-data\">";
    const size_t from = page.find(open) + open.size();
    return page.substr(from, page.find("</script>", from) - from);
  }

  const test::TempFolder temp_;
  const fs::path directory_ = temp_.path(), path_ = directory_ / "report.html";
};

Json plain() {
  return {{"lacuna_report", 1}, {"title", "t"}, {"summary", "s"}, {"sections", Json::array()}};
}

TEST_F(PageTest, DataReadsBackEqual) {
  Json report = plain();
  report["sections"] = {
      {{"kind", "table"},
       {"numbers", {0, -1, 1.0 / 3, 1e-300, 6.02e23, 9007199254740993, nullptr}},
       {"text", "\"quotes\" \\ / \b\f\n\r\t \x01 \u00e9 \u4e16 \U0001F600 &amp; ' $& $1"},
       {"nested", {{"empty", Json::object()}, {"yes", true}}}}};
  const Json read = Json::parse(data(page(report)));
  EXPECT_EQ(read, report);
  EXPECT_EQ(read.dump(), report.dump());  // the order of the keys too
}

TEST_F(PageTest, StringsCannotLeaveTheDataElement) {
  const std::string attack =
      "</script><script>alert(1)</script><!--<script>]]> {{data}}{{script}}{{css}} "
      "\u2028\u2029\u2027";
  Json report = plain();
  report["title"] = attack;
  report[attack] = {attack};
  const std::string hostile = page(report), harmless = page(plain());
  EXPECT_EQ(Json::parse(data(hostile)), report);
  EXPECT_THAT(data(hostile), Not(HasSubstr("<")));
  EXPECT_THAT(data(hostile), Not(HasSubstr("\u2028")));
  EXPECT_THAT(data(hostile), Not(HasSubstr("\u2029")));
  EXPECT_THAT(data(hostile), HasSubstr("\u2027"));
  // Around the data nothing depends on it.
  const size_t same = hostile.find(data(hostile));
  EXPECT_EQ(hostile.substr(0, same), harmless.substr(0, same));
  EXPECT_EQ(hostile.substr(same + data(hostile).size()),
            harmless.substr(same + data(harmless).size()));
}

TEST_F(PageTest, BytesThatAreNotUtf8BecomeReplacementCharacters) {
  Json report = plain();
  report["title"] = "a \xff\xfe b";
  EXPECT_EQ(Json::parse(data(page(report)))["title"], "a \ufffd\ufffd b");
}

TEST_F(PageTest, NeedsNothingFromOutside) {
  const std::string html = page(plain());
  EXPECT_EQ(count(html, "http://"), count(html, "\"http://www.w3.org/2000/svg\""));
  for (const char* reference :
       {"https://", "src=", "@import", "url(", "<iframe", "innerHTML", "eval("})
    EXPECT_THAT(html, Not(HasSubstr(reference)));
  EXPECT_THAT(html,
              HasSubstr("http-equiv=\"Content-Security-Policy\" content=\"default-src 'none';"));
  EXPECT_THAT(html, HasSubstr("<noscript>"));
}

TEST_F(PageTest, IsAssembledCompletely) {
  const std::string html = page(plain());
  EXPECT_THAT(html, testing::StartsWith("<!doctype html>\n"));
  EXPECT_THAT(html, testing::EndsWith("</html>\n"));
  EXPECT_THAT(html, Not(HasSubstr("{{")));
  EXPECT_EQ(count(html, "<script"), 2);
  EXPECT_EQ(count(html, "</script>"), 2);
  for (const char* kind : {"table", "lines", "bars", "heatmap", "front", "masks", "player", "text"})
    EXPECT_EQ(count(html, std::string("kinds.") + kind + " = "), 1) << kind;
  EXPECT_LT(html.size(), 100'000u);
}

TEST_F(PageTest, AppearsCompletelyOrNotAtAll) {
  EXPECT_THROW(write_report(directory_ / "no" / "report.html", plain()), Error);
  page(plain());
  const std::string before = content();
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{20'000, old.rlim_max};  // in the middle of the page
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  Json other = plain();
  other["title"] = "other";
  EXPECT_THROW(write_report(path_, other), Error);
  EXPECT_THROW(write_report(directory_ / "new.html", other), Error);
  setrlimit(RLIMIT_FSIZE, &old);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(content(), before);
  EXPECT_EQ(entries(), 1);
}

}  // namespace
}  // namespace lacuna
