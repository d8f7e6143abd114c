// SPDX-License-Identifier: Apache-2.0
#include "lacuna/engine/explain.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace lacuna {
namespace {

Rule rule_of(const char* attention, const char* skip = "none") {
  Rule rule;
  rule.plan = parse_plan(attention);
  rule.plan.skip = parse_skip(skip);
  return rule;
}

TEST(Explain, RulesInWords) {
  EXPECT_EQ(describe(Rule()), "dense");
  EXPECT_EQ(describe(rule_of("xattention")), "xattention");
  EXPECT_EQ(describe(rule_of("radial")), "radial") << "a fixed mask is selected once: as usual";
  EXPECT_EQ(describe(rule_of("xattention:top_p=0.5,refresh=drift,delta=0.2")),
            "xattention:top_p=0.5,refresh=drift,delta=0.2");
  EXPECT_EQ(describe(rule_of("xattention:refresh=drift,delta=30,relative=0,gate_low=0.4,pool=64")),
            "xattention:refresh=drift,delta=30,relative=0,pool=64");
  EXPECT_EQ(range_text(3, 4) + " " + range_text(3, 8), "3 3-7");
  EXPECT_EQ(describe(rule_of("xattention:stride=8,compensate=pooled_row", "recall:r=0.5")),
            "xattention:stride=8,compensate=pooled_row skip recall:r=0.5,kappa=1");
  Rule per_head = rule_of("xattention:refresh=at_steps,at=2+5");
  per_head.plan.params.set_per_head("top_p", {0.5, 0.75, 0.25});
  EXPECT_EQ(describe(per_head), "xattention:top_p=0.25..0.75,refresh=at_steps,at=2+5");
}

TraceEntry call(int step, int layer, int rule, const char* reason = "",
                Branch branch = Branch::cond) {
  TraceEntry e;
  e.site.step = step;
  e.site.layer = layer;
  e.site.branch = branch;
  e.rule = rule;
  e.method = *reason == 0 ? "radial" : "dense";
  e.reason = reason;
  e.num_heads = 4;
  e.heads_refreshed = *reason == 0 ? 1 : 0;
  e.qk_density = *reason == 0 ? 0.25 : 1.0;
  e.pv_density = e.qk_density;
  return e;
}

// Step 0 dense, then layer 0 dense and layers 1, 2 sparse; in both branches.
TEST(Explain, EqualNeighboursAreOneRow) {
  std::vector<TraceEntry> calls;
  for (int step = 0; step < 5; ++step)
    for (const Branch branch : {Branch::cond, Branch::uncond})
      for (int layer = 0; layer < 3; ++layer)
        calls.push_back(step == 0    ? call(step, layer, 0, "dense-steps", branch)
                        : layer == 0 ? call(step, layer, 1, "dense-layers", branch)
                                     : call(step, layer, 2, "", branch));
  const std::vector<std::string> rules{"dense", "dense", "radial:block=64"};
  std::vector<ExplainRow> rows = explain(calls, rules);
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_EQ(rows[0].why, "dense-steps");
  EXPECT_EQ(rows[0].what, "dense");
  EXPECT_EQ(rows[0].layer_end, 3);
  EXPECT_EQ(rows[0].branch, "both");
  EXPECT_EQ(rows[1].why, "dense-layers");
  EXPECT_EQ(rows[1].step_begin, 1);
  EXPECT_EQ(rows[1].step_end, 5);
  EXPECT_EQ(rows[2].what, "radial:block=64");
  EXPECT_EQ(rows[2].layer_begin, 1);
  EXPECT_EQ(rows[2].calls, 4 * 2 * 2);
  EXPECT_EQ(rows[2].refreshed, 16);
  EXPECT_EQ(rows[2].reused, 48);
  EXPECT_DOUBLE_EQ(rows[2].qk_density, 0.25);

  calls[4 * 6 + 4].reason = "look";  // step 4, uncond, layer 1
  rows = explain(calls, rules);
  std::vector<std::string> branches;
  for (const ExplainRow& row : rows) branches.push_back(row.branch);
  EXPECT_EQ(rows.size(), 6u);
  EXPECT_THAT(branches, testing::Contains("uncond"));
}

TEST(Explain, PlansWithoutRunning) {
  Policy policy = make_policy(parse_plan("radial"), {}, "1", "1", 0, 2);
  std::vector<Site> sites;
  for (int step : {0, 1})
    for (int layer : {0, 1}) sites.push_back({step, 2, 1.0f, layer, 2});
  const std::vector<TraceEntry> calls = planned_calls(policy, sites, 64, 3);
  ASSERT_EQ(calls.size(), 4u);
  EXPECT_EQ(calls[0].reason, "dense-steps");
  EXPECT_EQ(calls[3].reason, "dense-layers");
  EXPECT_EQ(calls[2].method, "radial");
  EXPECT_EQ(calls[2].reason, "");
  EXPECT_EQ(planned_calls(Policy(), sites, 64, 3)[0].rule, -1);
}

}  // namespace
}  // namespace lacuna
