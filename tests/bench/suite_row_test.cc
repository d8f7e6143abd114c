// SPDX-License-Identifier: Apache-2.0
#include "bench/suite_row.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <tuple>

namespace lacuna::bench {
namespace {

using cpu::Isa;

SuiteRow row_of(RatioKind kind, double must, double reach) {
  SuiteRow row;
  row.name = "a row";
  row.kind = kind;
  row.must = must;
  row.reach = reach;
  return row;
}

const SuiteRow& find(const std::vector<SuiteRow>& rows, const std::string& name) {
  for (const SuiteRow& row : rows)
    if (row.name == name) return row;
  ADD_FAILURE() << "no row " << name;
  return rows.front();
}

TEST(SuiteRow, RatioIsTheMedianOfPairsNotTheRatioOfMedians) {
  SuiteRow row = row_of(RatioKind::speed_up, 1, 2);
  const double ms[] = {1, 2, 4}, baseline[] = {3, 2, 20};  // ratios 3, 1, 5
  set_times(row, ms, baseline, 1);
  EXPECT_EQ(row.ratio, 3);
  EXPECT_EQ(row.ms, 2);
  EXPECT_EQ(row.baseline_ms, 3);
  EXPECT_EQ(row.pairs, 3);
  EXPECT_EQ(median({4, 1, 3, 2}), 2.5);
}

TEST(SuiteRow, RatioFollowsItsKind) {
  const double ms[] = {50}, baseline[] = {100};
  const auto ratio = [&](RatioKind kind, double work) {
    SuiteRow row = row_of(kind, 1, 1);
    set_times(row, ms, baseline, work);
    return *row.ratio;
  };
  EXPECT_EQ(ratio(RatioKind::efficiency, 0.25), 0.5);  // a quarter of the work in half the time
  EXPECT_EQ(ratio(RatioKind::share, 1), 2);
  EXPECT_EQ(ratio(RatioKind::part, 1), 0.5);
  EXPECT_EQ(ratio(RatioKind::extra, 1), -0.5);
}

TEST(SuiteRow, VerdictHonoursTheDirection) {
  const auto says = [](RatioKind kind, double must, double reach, double ratio) {
    SuiteRow row = row_of(kind, must, reach);
    row.ratio = ratio;
    return std::string(verdict(row));
  };
  EXPECT_EQ(says(RatioKind::share, 0.75, 0.85, 0.74), "miss");
  EXPECT_EQ(says(RatioKind::share, 0.75, 0.85, 0.75), "pass");
  EXPECT_EQ(says(RatioKind::share, 0.75, 0.85, 0.85), "reach");
  EXPECT_EQ(says(RatioKind::extra, 0.04, 0.02, 0.05), "miss");
  EXPECT_EQ(says(RatioKind::extra, 0.04, 0.02, 0.03), "pass");
  EXPECT_EQ(says(RatioKind::part, 0.05, 0.03, 0.01), "reach");
  EXPECT_EQ(says(RatioKind::share, 0, 0, 0.5), "no bar");
  SuiteRow skipped = row_of(RatioKind::share, 0.75, 0.85);
  skipped.skipped = "needs amx";
  EXPECT_STREQ(verdict(skipped), "skipped");
}

TEST(SuiteRow, RowsAreUniqueAndStandByTheirBars) {
  const std::vector<SuiteRow> rows = suite_rows(Isa::amx);
  std::set<std::tuple<std::string, int>> seen;
  for (const SuiteRow& row : rows) {
    EXPECT_TRUE(seen.emplace(row.name, row.isa ? static_cast<int>(*row.isa) : -1).second)
        << row.name;
    if (row.lower_is_better()) {
      EXPECT_LT(row.reach, row.must) << row.name;
    } else {
      EXPECT_GE(row.reach, row.must) << row.name;
    }
  }
  EXPECT_EQ(find(rows, "dense d128 bf16").must, 0);  // vdpbf16ps comes first and has no bar
  EXPECT_EQ(find(rows, "sparse 0.05 bf16").must, 0.65);
  EXPECT_EQ(find(rows, "sparse 0.05 f32").must, 0.87);
  EXPECT_EQ(find(rows, "vs oneDNN bf16").must, 3.4);
  EXPECT_EQ(find(suite_rows(Isa::avx512_bf16), "vs oneDNN bf16").must, 0);
}

TEST(SuiteRow, MissingHardwareIsNamed) {
  using testing::HasSubstr;
  const std::vector<SuiteRow> rows = suite_rows(Isa::avx2);
  EXPECT_EQ(suite_row_missing(find(rows, "dense d128 f32"), Isa::avx2, 2), "");
  EXPECT_EQ(suite_row_missing(find(rows, "sparse 0.1 bf16"), Isa::avx2, 2), "");
  EXPECT_THAT(suite_row_missing(find(rows, "64-blocks bf16"), Isa::avx512_bf16, 2),
              HasSubstr("needs amx"));
  EXPECT_EQ(suite_row_missing(find(rows, "64-blocks bf16"), Isa::amx, 2), "");
  EXPECT_THAT(suite_row_missing(find(rows, "vs oneDNN bf16"), Isa::avx512, 2), HasSubstr("oneDNN"));
  EXPECT_THAT(suite_row_missing(find(rows, "block mass bf16"), Isa::avx2, 2), HasSubstr("widened"));
  EXPECT_THAT(suite_row_missing(find(rows, "2 threads f32"), Isa::amx, 1), HasSubstr("two cores"));
}

TEST(SuiteRow, JsonHasEveryFieldAndNullWhereNothingWasMeasured) {
  SuiteRow row = row_of(RatioKind::efficiency, 0.9, 0);
  row.level = "avx2";
  row.rel_l2 = 1.0 / 3;
  const nlohmann::ordered_json j = to_json(row);
  for (const char* field :
       {"name",    "isa",     "dtype", "seq_len", "num_heads",     "head_dim",   "block",
        "pattern", "density", "ms",    "gflops",  "share_of_peak", "efficiency", "baseline",
        "ratio",   "rel_l2",  "must",  "reach",   "verdict",       "lse_error",  "pairs"})
    EXPECT_TRUE(j.contains(field)) << field;
  EXPECT_EQ(j["rel_l2"].get<double>(), 0.333333);
  EXPECT_TRUE(j["ms"].is_null());
  EXPECT_TRUE(j["reach"].is_null());
  EXPECT_FALSE(j.contains("skipped"));
  row.skipped = "needs amx";
  EXPECT_EQ(to_json(row)["skipped"], "needs amx");
  EXPECT_EQ(to_json(row)["verdict"], "skipped");
}

TEST(SuiteRow, LineShowsTheRatioInItsUnit) {
  using testing::HasSubstr;
  SuiteRow row = row_of(RatioKind::extra, 0.35, 0.2);
  const double ms[] = {120}, baseline[] = {100};
  set_times(row, ms, baseline, 1);
  EXPECT_THAT(to_line(row), testing::AllOf(HasSubstr("20.0%"), HasSubstr("<=35.0%")));
  row.kind = RatioKind::speed_up;
  row.ratio = 1.352;
  EXPECT_THAT(to_line(row), HasSubstr("1.35x"));
  row.skipped = "needs amx";
  EXPECT_THAT(to_line(row), HasSubstr("skipped: needs amx"));
}

}  // namespace
}  // namespace lacuna::bench
