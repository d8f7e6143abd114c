// SPDX-License-Identifier: Apache-2.0
#include "lacuna/report/tournament.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lacuna/core/error.h"
#include "tests/support/local_call.h"

namespace lacuna::test {
namespace {

TournamentPoint point(const char* name, double density, double loss, double ms) {
  TournamentPoint p;
  p.contestant = p.row.name = name;
  p.target = density;
  p.row.qk_density = p.row.pv_density = density;
  p.row.rel_l1 = loss;
  p.row.recall = 1.0 - loss;
  p.row.select_ms = 1.0;
  p.row.attend_ms = ms - 1.0;
  p.row.dense_ms = 100.0;
  return p;
}

// a loses less, b is faster.
Tournament two() {
  Tournament t;
  t.settings.densities = {0.1, 0.5};
  t.settings.times = {0.4, 0.9};
  t.dense.name = "dense";
  t.dense.rel_l1 = 0.003;
  t.dense.dense_ms = t.dense.attend_ms = 100.0;
  t.reordered = t.dense;
  t.points = {point("b", 0.1, 0.4, 20.0), point("a", 0.1, 0.2, 40.0), point("b", 0.5, 0.04, 60.0),
              point("a", 0.5, 0.02, 80.0)};
  return t;
}

TEST(Tournament, SaysWhoWins) {
  const auto lines = tournament_sentences(two());
  ASSERT_EQ(lines.size(), 4u);
  EXPECT_EQ(lines[0], "At density 0.1 a loses least (rel_l1 0.2, recall 0.800), before b (0.4).");
  EXPECT_EQ(lines[1], "At density 0.5 a loses least (rel_l1 0.02, recall 0.980), before b (0.04).");
  EXPECT_EQ(lines[2],
            "Counting selection time, b is fastest with rel_l1 at most 0.05: 1.67x dense at "
            "density 0.500 (rel_l1 0.04, selection 1.0 % of dense).");
  EXPECT_THAT(lines[3], testing::HasSubstr("0.003"));
}

TEST(Tournament, TiesAndFailuresAreSaid) {
  Tournament t = two();
  t.points[1].row.rel_l1 = 0.395;
  t.settings.loss = 0.001;
  const auto lines = tournament_sentences(t);
  EXPECT_THAT(lines[0], testing::StartsWith("At density 0.1 a and b lose least"));
  EXPECT_THAT(lines[2], testing::HasSubstr("no measured point is faster than dense"));
}

TEST(Tournament, LossAtATimeRunsBetweenMeasuredPoints) {
  const Tournament t = two();
  EXPECT_NEAR(*loss_at_time(t, "a", 40.0), 0.2, 1e-9);
  EXPECT_NEAR(*loss_at_time(t, "a", 60.0), std::sqrt(0.2 * 0.02), 1e-9);
  EXPECT_FALSE(loss_at_time(t, "a", 39.0));
  EXPECT_FALSE(loss_at_time(t, "a", 81.0));
  EXPECT_FALSE(loss_at_time(t, "c", 60.0));
}

TEST(Tournament, Sections) {
  Tournament t = two();
  t.missed = {{"c", 0.1}, {"c", 0.5}, {"d", {}}, {"e", 0.1}};
  const Json sections = tournament_sections(t);
  std::vector<std::string> kinds;
  for (const Json& section : sections) kinds.push_back(section["kind"]);
  EXPECT_EQ(kinds, (std::vector<std::string>{"text", "table", "table", "table", "front", "front"}));
  const Json& paragraphs = sections[0]["paragraphs"];
  EXPECT_EQ(paragraphs[4], "Not reached: c at density 0.1, 0.5; e at density 0.1.");
  EXPECT_EQ(paragraphs[5], "Keeps everything at this size: d.");
  const Json& rank = sections[1]["rows"];
  ASSERT_EQ(rank.size(), 2u);
  EXPECT_EQ(rank[0]["attention"], "a");
  EXPECT_EQ(rank[0]["behind"], 1.0);
  EXPECT_NEAR(rank[1]["behind"].get<double>(), 2.0, 1e-9);
  EXPECT_NEAR(rank[1]["speedup"].get<double>(), 100.0 / 60.0, 1e-12);
  EXPECT_EQ(sections[2]["rows"].size(), 6u);
  EXPECT_EQ(sections[2]["rows"].back()["floor"], true);
  for (const Json& section : sections) {
    if (section["kind"] != "table") continue;
    for (const Json& row : section["rows"])
      for (const Json& column : section["columns"])
        EXPECT_TRUE(row.contains(column["key"].get<std::string>())) << column << row;
  }
  EXPECT_EQ(sections[3]["rows"][0]["at_0.9"], nullptr);
  EXPECT_EQ(sections[4]["points"].size(), 4u);
  EXPECT_EQ(sections[5]["points"][0]["x"], 20.0);
}

TEST(Tournament, ASelectionMadeOnceIsSharedByTheSteps) {
  Tournament t = two();
  t.points[2].row.select_ms = 50.0;
  t.points[2].row.selections = 0.02;  // 1 ms of each call, as before
  EXPECT_THAT(tournament_sentences(t)[2], testing::HasSubstr("1.67x dense"));
  EXPECT_THAT(tournament_sentences(t)[2], testing::HasSubstr("selection 1.0 % of dense"));
}

TEST(Tournament, NoFrontWithoutPoints) {
  Tournament t = two();
  t.points.clear();
  for (const Json& section : tournament_sections(t)) EXPECT_NE(section["kind"], "front");
}

TEST(Tournament, RunsEveryCaseAtEveryDensity) {
  const auto backend = make_backend("cpu");
  const LocalCall local;
  const RecordedCall call = local.at({.num_steps = 8});
  Replay replay(*backend, std::span(&call, 1), 1);
  const std::vector<ReplayCase> cases{
      replay_case("xattention:block=16,stride=4", "none"), replay_case("adaspa:block=16", "none"),
      replay_case("dense", "running_max"), replay_case("window", "none")};
  TournamentSettings settings;
  settings.densities = {0.5, 0.25, 0.5};  // one twice
  int last = -1, reports = 0;
  const Tournament t =
      run_tournament(replay, cases, settings, [&](int done, int total, const std::string&) {
        EXPECT_GE(done, last);
        EXPECT_LE(done, total);
        EXPECT_EQ(total, 9);
        last = done;
        ++reports;
      });
  EXPECT_EQ(last, 9);
  EXPECT_GE(reports, 9);
  EXPECT_EQ(t.settings.densities, (std::vector<double>{0.25, 0.5}));
  EXPECT_EQ(t.points.size() + t.missed.size(), 7u);
  for (const TournamentPoint& p : t.points) {
    if (p.target) {
      EXPECT_NEAR(p.row.pv_density, *p.target, 0.05 * *p.target) << p.contestant;
    }
  }
  for (const TournamentPoint& p : t.points) {
    bool beaten = false;
    for (const TournamentPoint& q : t.points)
      beaten = beaten || (q.row.pv_density <= p.row.pv_density && q.row.rel_l1 <= p.row.rel_l1 &&
                          (q.row.pv_density < p.row.pv_density || q.row.rel_l1 < p.row.rel_l1));
    EXPECT_EQ(p.on_density_front, !beaten) << p.contestant;
  }
  EXPECT_THROW(run_tournament(replay, {}, settings), Error);
  settings.densities = {1.5};
  EXPECT_THROW(run_tournament(replay, cases, settings), Error);
}

}  // namespace
}  // namespace lacuna::test
