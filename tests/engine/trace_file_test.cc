// SPDX-License-Identifier: Apache-2.0
#include "lacuna/engine/trace_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "lacuna/core/error.h"
#include "tests/methods/fixtures.h"
#include "tests/support/temp_folder.h"

namespace lacuna::test {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class TraceFileTest : public testing::Test {
 protected:
  void write(const std::string& text) const { std::ofstream(path_, std::ios::binary) << text; }
  std::string read() const {
    std::ifstream in(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  RunHeader header() const {
    RunHeader h;
    h.version = "0.1.0";
    h.date = "2026-01-02T03:04:05Z";
    h.machine = {{"backend", "cpu"}, {"threads", 2}};
    h.request = {{"prompt", "a \"red\" ball"}, {"sampler", {{"steps", 4}}}};
    h.target = {"toy", "abc", 2, 3, 32, {2, 3, 4}, 5, {1.0, 0.75, 0.5, 0.25}};
    h.rules = {"dense", "xattention:top_p=0.5"};
    return h;
  }
  Trace trace() const {
    Trace t;
    for (int step : {0, 3}) {
      TraceEntry e;
      e.site = {step, 4, 0.75f, 1, 2, Branch::uncond, 1};
      e.method = "radial";
      e.reason = step == 0 ? "look" : "";
      e.rule = 1;
      e.num_heads = 3;
      e.heads_refreshed = 2;
      e.qk_density = 0.1;
      e.pv_density = 0.25;
      e.select_ms = 1.5;
      e.attend_ms = 2.5;
      e.mask_hash = 0xfedcba9876543210ull;
      t.add(e);
    }
    return t;
  }

  const TempFolder temp_;
  const fs::path path_ = temp_.path() / "trace.json";
};

TEST_F(TraceFileTest, RoundTrips) {
  save_trace(path_, header(), trace());
  const TraceFile loaded = load_trace(path_);
  EXPECT_EQ(header_json(loaded.header), header_json(header()));
  ASSERT_EQ(loaded.calls.size(), 2u);
  const TraceEntry& e = loaded.calls[1];
  EXPECT_EQ(e.site.step, 3);
  EXPECT_EQ(e.site.num_layers, 2);
  EXPECT_EQ(e.site.branch, Branch::uncond);
  EXPECT_EQ(e.site.expert, 1);
  EXPECT_EQ(e.rule, 1);
  EXPECT_EQ(e.qk_density, 0.1);
  EXPECT_EQ(e.mask_hash, 0xfedcba9876543210ull);
  EXPECT_EQ(loaded.calls[0].reason, "look");
  const std::string first = read();
  Trace again;
  for (const TraceEntry& call : loaded.calls) again.add(call);
  save_trace(path_, loaded.header, again);
  EXPECT_EQ(read(), first);
}

TEST_F(TraceFileTest, AnEmptyTraceIsOne) {
  save_trace(path_, header(), Trace());
  EXPECT_TRUE(load_trace(path_).calls.empty());
}

TEST_F(TraceFileTest, RefusesHostileFilesInOneLine) {
  save_trace(path_, header(), trace());
  const std::string good = read();
  const auto error_with = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    const size_t at = text.find(from);
    EXPECT_NE(at, text.npos) << from;
    write(text.replace(at, from.size(), to));
    const std::string error = error_of([&] { load_trace(path_); });
    EXPECT_EQ(error.find('\n'), error.npos);
    return error;
  };
  EXPECT_THAT(error_with("\"lacuna_trace\": 1", "\"lacuna_trace\": 2"),
              HasSubstr("trace version 2, expected 1"));
  EXPECT_THAT(error_with("lacuna_trace", "something"), HasSubstr("not a trace"));
  EXPECT_THAT(error_with("\"step\":3", "\"step\":4"), HasSubstr("calls[1].step"));
  EXPECT_THAT(error_with("\"step\":3", "\"step\":\"3\""), HasSubstr("expected a whole number"));
  EXPECT_THAT(error_with("\"qk_density\":0.1", "\"qk_density\":1.5"), HasSubstr("qk_density"));
  EXPECT_THAT(error_with("\"rule\":1", "\"rule\":2"), HasSubstr("calls[0].rule"));
  EXPECT_THAT(error_with("fedcba", "FEDCBA"), HasSubstr("16 hex digits"));
  EXPECT_THAT(error_with("\"method\"", "\"methods\""), HasSubstr("unknown key"));
  EXPECT_THAT(error_with("\"threads\":2", "\"threads\":[2]"), HasSubstr("machine.threads"));
  EXPECT_THAT(error_with("\"uncond\"", "\"both\""), HasSubstr("expected cond or uncond"));
  for (size_t n = 0; n < good.size() - 3; n += 13) {
    write(good.substr(0, n));
    EXPECT_THROW(load_trace(path_), Error) << n;
  }
  write("[]");
  EXPECT_THAT(error_of([&] { load_trace(path_); }), HasSubstr("not a trace"));
}

}  // namespace
}  // namespace lacuna::test
