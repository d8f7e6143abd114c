// SPDX-License-Identifier: Apache-2.0
#include "lacuna/engine/policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/engine/fixtures.h"

namespace lacuna::test {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(ParsePlan, MethodParametersAndRefresh) {
  const Plan plan = parse_plan(
      "xattention:top_p=0.85,stride=8,refresh=drift,delta=30,relative=0,gate_low=0.3,pool=64");
  EXPECT_EQ(plan.method->name(), "xattention");
  EXPECT_EQ(plan.params.get("top_p"), 0.85);
  EXPECT_EQ(plan.params.get_int("stride"), 8);
  EXPECT_EQ(plan.params.get_int("block"), 128) << "default";
  EXPECT_EQ(plan.refresh.kind, RefreshKind::drift);
  EXPECT_EQ(plan.refresh.delta, 30.0);
  EXPECT_EQ(plan.refresh.gate_low, 0.3);
  EXPECT_EQ(plan.refresh.gate_high, 0.8);
  EXPECT_FALSE(plan.refresh.relative);
  EXPECT_EQ(plan.refresh.pool, 64);
}

TEST(ParsePlan, RefreshDefaultsFollowTheMethod) {
  EXPECT_EQ(parse_plan("xattention").refresh.kind, RefreshKind::every_step);
  EXPECT_EQ(parse_plan("radial:decay=0.8").refresh.kind, RefreshKind::never);
  EXPECT_EQ(parse_plan("radial:refresh=every_step").refresh.kind, RefreshKind::every_step);
  const Refresh at = parse_plan("xattention:refresh=at_steps,at=10-12+30").refresh;
  EXPECT_EQ(at.kind, RefreshKind::at_steps);
  EXPECT_THAT(at.steps, ElementsAre(10, 11, 12, 30));
  EXPECT_EQ(parse_plan("xattention:at=3,refresh=at_steps").refresh.steps, std::vector<int>{3});
}

TEST(ParsePlan, CompensationGoesWithEveryMethod) {
  EXPECT_EQ(parse_plan("radial").compensate, Compensation::none);
  EXPECT_EQ(parse_plan("xattention:top_p=0.9,compensate=pooled_block").compensate,
            Compensation::pooled_block);
  const Plan plan = parse_plan("radial:compensate=pooled_row,refresh=drift,delta=1");
  EXPECT_EQ(plan.compensate, Compensation::pooled_row);
  EXPECT_EQ(plan.refresh.delta, 1.0);
  EXPECT_THAT(error_of([] { parse_plan("radial:compensate=all"); }),
              HasSubstr("'all', expected one of none, pooled_row, pooled_block"));
}

TEST(ParsePlan, ErrorsNameWhatIsKnown) {
  const auto error = [](const char* text) { return error_of([&] { parse_plan(text); }); };
  EXPECT_THAT(error("xatention"), HasSubstr("'xatention', expected one of dense"));
  EXPECT_THAT(error(""), HasSubstr("expected one of dense"));
  EXPECT_THAT(error("xattention:topp=0.9"), HasSubstr("'topp', expected one of top_p, stride"));
  EXPECT_THAT(error("xattention:top_p=1.9"), HasSubstr("top_p: 1.9, expected a number in"));
  EXPECT_THAT(error("xattention:top_p=0.9x"), HasSubstr("'0.9x', expected a number"));
  EXPECT_THAT(error("xattention:top_p="), HasSubstr("expected a number"));
  EXPECT_THAT(error("xattention:top_p=nan"), HasSubstr("top_p: nan"));
  EXPECT_THAT(error("xattention:top_p"), HasSubstr("expected key=value"));
  EXPECT_THAT(error("xattention:"), HasSubstr("expected key=value"));
  EXPECT_THAT(error("xattention:top_p=0.5,top_p=0.6"), HasSubstr("'top_p' twice"));
  EXPECT_THAT(error("xattention:stride=12"), HasSubstr("stride 12, expected 4, 8, 16 or 32"));
  EXPECT_THAT(error("xattention:refresh=often"), HasSubstr("'often', expected one of every_step"));
  EXPECT_THAT(error("xattention:delta=3"), HasSubstr("'delta'")) << "belongs to drift only";
  EXPECT_THAT(error("xattention:refresh=at_steps"), HasSubstr("expected e.g. at=10+30"));
  EXPECT_THAT(error("xattention:refresh=drift,gate_low=0.9"), HasSubstr("at most gate_high"));
}

// The parser gives these keys to the refresh rule, so no method may use them.
TEST(ParsePlan, NoMethodUsesARefreshKey) {
  for (const Method* method : all_methods())
    for (const ParamSpec& spec : method->specs()) {
      EXPECT_NE(spec.name, "refresh");
      EXPECT_NE(spec.name, "at");
      EXPECT_NE(spec.name, "compensate");
      for (const RefreshInfo& info : all_refresh_rules())
        for (const ParamSpec& key : info.specs) EXPECT_NE(spec.name, key.name) << method->name();
    }
}

TEST(ParseSkip, RulesAndDefaults) {
  EXPECT_EQ(parse_skip("none"), SkipRule{});
  EXPECT_EQ(parse_skip("running_max:lambda=0.25"), (SkipRule{SkipKind::running_max, {0.25f}}));
  EXPECT_EQ(parse_skip("running_lse"), (SkipRule{SkipKind::running_lse, {-6.0f}}));
  EXPECT_EQ(parse_skip("recall:r=0.9"), (SkipRule{SkipKind::recall, {0.9f}, {1.0f}}));
  EXPECT_EQ(parse_skip("recall:kappa=0.5,r=0.5"), (SkipRule{SkipKind::recall, {0.5f}, {0.5f}}));
  const auto error = [](const char* text) { return error_of([&] { parse_skip(text); }); };
  EXPECT_THAT(error("blasst"), HasSubstr("'blasst', expected one of none, running_max"));
  EXPECT_THAT(error("running_max:lambda=-1"), HasSubstr("lambda: -1, expected"));
  EXPECT_THAT(error("none:lambda=1"), HasSubstr("'lambda', expected none"));
}

// a / L, and a exp(b s) / L: BLASST's calibrations. exp(2 * 0.5) = e.
TEST(ParseSkip, RunningMaxPerKey) {
  EXPECT_EQ(parse_skip("running_max:a=820"), (SkipRule{SkipKind::running_max, {820.0f}, {}, true}));
  const SkipRule fitted = parse_skip("running_max:a=100,b=2,sparsity=0.5");
  EXPECT_TRUE(fitted.per_key);
  EXPECT_FLOAT_EQ(fitted.param[0], 271.828183f);
  // What NVIDIA ships for Wan2.2-T2V-A14B at 75 600 tokens and 75 %: 0.704 and 0.425.
  const auto lambda = [](const char* text) { return parse_skip(text).param[0] / 75600.0f; };
  EXPECT_NEAR(lambda("running_max:a=2142.73,b=4.2827,sparsity=0.75"), 0.704, 5e-4);
  EXPECT_NEAR(lambda("running_max:a=314.68,b=6.1665,sparsity=0.75"), 0.425, 5e-4);
  const auto error = [](const char* text) { return error_of([&] { parse_skip(text); }); };
  EXPECT_THAT(error("running_max:a=1,lambda=0.1"), HasSubstr("lambda and a, expected one"));
  EXPECT_THAT(error("running_max:b=1"), HasSubstr("without a"));
  EXPECT_THAT(error("running_max:sparsity=0.5"), HasSubstr("without a"));
  EXPECT_THAT(error("running_max:a=10,b=100,sparsity=1"), HasSubstr("expected at most"));
  EXPECT_THAT(error("running_max:a=-1"), HasSubstr("a: -1"));
  EXPECT_THAT(error("running_lse:a=1"), HasSubstr("'a', expected one of lambda"));
}

TEST(MakeSkip, EveryRuleComesBackFromItsValues) {
  for (const char* text :
       {"none", "running_max", "running_max:a=820.5", "running_max:a=3,b=2,sparsity=0.7",
        "running_lse:lambda=-8.25", "recall:r=0.9,kappa=0.3"}) {
    const SkipRule rule = parse_skip(text);
    Params params(skip_info(rule.kind).specs);
    for (const SkipValue& value : skip_values(rule)) params.set(value.name, value.values[0]);
    EXPECT_EQ(make_skip(rule.kind, params), rule) << text;
  }
  Params heads(skip_info(SkipKind::running_max).specs);
  heads.set("a", 100.0);
  heads.set("b", 1.0);
  heads.set_per_head("sparsity", {0.0, 1.0});
  const SkipRule rule = make_skip(SkipKind::running_max, heads);
  ASSERT_EQ(rule.param.size(), 2u);
  EXPECT_FLOAT_EQ(rule.param[0], 100.0f);
  EXPECT_FLOAT_EQ(rule.param[1], 271.828183f);
}

TEST(ParseIndexList, RangesAndGarbage) {
  EXPECT_THAT(parse_index_list("0-3,7,5,5"), ElementsAre(0, 1, 2, 3, 5, 7));
  EXPECT_THAT(parse_index_list("12"), ElementsAre(12));
  for (const char* bad : {"", ",", "1,", "-1", "3-1", "1-", "a", "1-2-3", "1.5", "99999999",
                          "0-99999999999", " 1", "1--2"})
    EXPECT_THAT(error_of([&] { parse_index_list(bad); }), HasSubstr("index list")) << bad;
}

TEST(SiteMatch, HalfOpenRangesAndLists) {
  SiteMatch match;
  match.step_begin = 2;
  match.step_end = 4;
  match.layers = {1, 3};
  match.branch = Branch::cond;
  match.expert = 1;
  match.max_tokens = 100;
  match.sigma_min = 0.5f;
  match.sigma_max = 1.0f;
  Site site = site_at(2, 3, Branch::cond, 1);
  site.sigma = 0.5f;
  EXPECT_TRUE(match.matches(site, 100));
  EXPECT_FALSE(match.matches(site, 101));
  const auto differs = [&](auto change) {
    Site other = site;
    change(other);
    return !match.matches(other, 100);
  };
  EXPECT_TRUE(differs([](Site& s) { s.step = 1; }));
  EXPECT_TRUE(differs([](Site& s) { s.step = 4; }));
  EXPECT_TRUE(differs([](Site& s) { s.sigma = 1.0f; }));
  EXPECT_TRUE(differs([](Site& s) { s.sigma = 0.25f; }));
  EXPECT_TRUE(differs([](Site& s) { s.layer = 2; }));
  EXPECT_TRUE(differs([](Site& s) { s.branch = Branch::uncond; }));
  EXPECT_TRUE(differs([](Site& s) { s.expert = 0; }));
}

TEST(Policy, FirstMatchWins) {
  Policy policy;
  Rule a, b;
  a.match.step_end = 5;
  a.reason = "a";
  b.reason = "b";
  policy.add(a);
  policy.add(b);
  EXPECT_EQ(policy.at(site_at(4)).reason, "a");
  EXPECT_EQ(policy.at(site_at(5)).reason, "b");
  EXPECT_EQ(Policy().at(site_at(0)).reason, "no rule");
}

TEST(Policy, SaysWhetherTokensMayMove) {
  const auto moves = [](const char* text) {
    return make_policy(parse_plan(text), {}, "2", "", 0, 50).moves_tokens();
  };
  for (const char* text : {"dense", "radial", "xattention", "adaspa", "sparge"})
    EXPECT_FALSE(moves(text)) << text;
  for (const char* text : {"window", "svg", "svg2", "sparge:hilbert=1"})
    EXPECT_TRUE(moves(text)) << text;
  EXPECT_FALSE(Policy().moves_tokens());
  const auto given = [](const char* method, bool ordered, double anchors) {
    auto masks = std::make_shared<Selection>();
    if (ordered) masks->k_order = hilbert_order({2, 3, 4});
    Rule rule;
    rule.plan.method = &find_method(method);
    rule.plan.params = Params(rule.plan.method->specs());
    if (anchors > 0) rule.plan.params.set_per_head("anchors", {0, anchors});
    rule.plan.fixed = std::move(masks);
    Policy policy;
    policy.add(std::move(rule));
    return policy.moves_tokens();
  };
  EXPECT_FALSE(given("fixed", false, 0));
  EXPECT_TRUE(given("fixed", true, 0));
  EXPECT_FALSE(given("calibatt", false, 0));
  EXPECT_TRUE(given("calibatt", false, 2));
}

// The largest rule of each site; sites of dense rules hold nothing, masks that are shared are held
// once beside their copies.
TEST(Policy, HoldsTheMostOfWhatRunsAtASite) {
  const SiteSizes sizes{{1, 8, 16}, 0, 2, 32};
  Policy policy = make_policy(parse_plan("radial:block=64"), {}, "2", "0", 0, 50);
  const int64_t mask = 2 * 2 * 8;
  const auto held = [&](std::initializer_list<Site> sites) {
    return policy.held_bytes({sites.begin(), sites.size()}, sizes);
  };
  EXPECT_EQ(held({}), 0);
  EXPECT_EQ(held({site_at(1, 1), site_at(2, 0)}), 0);
  EXPECT_EQ(held({site_at(2, 1), site_at(3, 1)}), mask);
  EXPECT_EQ(held({site_at(2, 1), site_at(2, 2), site_at(2, 1, Branch::uncond)}), 3 * mask);
  EXPECT_EQ(held({site_at(2, 1), site_at(2, 1, Branch::cond, 1)}), 2 * mask);

  const auto given = std::make_shared<Selection>();
  given->q_layout = given->k_layout = BlockLayout::uniform(128, 32);
  given->mask = BlockMask(2, 4, 4);
  policy = {};
  for (const int layer : {1, 2}) {
    Rule rule;
    rule.match.layers = {layer};
    rule.plan = parse_plan("fixed");
    rule.plan.fixed = given;
    policy.add(rule);
  }
  EXPECT_EQ(held({}), 2 * 4 * 8);
  EXPECT_EQ(held({site_at(0, 1), site_at(0, 2), site_at(0, 3)}), 3 * 2 * 4 * 8);
}

TEST(MakePolicy, DenseStepsLayersAndShortSequences) {
  const Policy policy =
      make_policy(parse_plan("radial"), parse_skip("running_lse"), "3", "0,2-3", 1000, 50);
  const auto reason = [&](int step, int layer, int64_t tokens) {
    return policy.at(site_at(step, layer), tokens).reason;
  };
  EXPECT_EQ(reason(0, 1, 5000), "dense-steps");
  EXPECT_EQ(reason(2, 1, 5000), "dense-steps");
  EXPECT_EQ(reason(3, 0, 5000), "dense-layers");
  EXPECT_EQ(reason(3, 1, 999), "min-tokens");
  EXPECT_EQ(reason(3, 3, 999), "dense-layers");
  const Plan& plan = policy.at(site_at(3, 1), 1000).plan;
  EXPECT_EQ(plan.method->name(), "radial");
  EXPECT_EQ(plan.skip.kind, SkipKind::running_lse);
  EXPECT_EQ(policy.at(site_at(0, 1), 5000).plan.skip.kind, SkipKind::none);
}

TEST(MakePolicy, StepsAsCountOrList) {
  const auto dense = [](const char* steps) {
    const Policy policy = make_policy(parse_plan("radial"), {}, steps, "", 0, 10);
    std::vector<int> found;
    for (int step = 0; step < 10; ++step)
      if (policy.at(site_at(step), 1).plan.method == nullptr) found.push_back(step);
    return found;
  };
  EXPECT_THAT(dense(""), ElementsAre());
  EXPECT_THAT(dense("0"), ElementsAre());
  EXPECT_THAT(dense("2"), ElementsAre(0, 1));
  EXPECT_THAT(dense("0-1,4,9"), ElementsAre(0, 1, 4, 9));
  EXPECT_EQ(dense("10").size(), 10u);
  for (const char* bad : {"11", "0-10", "3,12"})
    EXPECT_THAT(error_of([&] { dense(bad); }), HasSubstr("expected steps below 10")) << bad;
}

TEST(MakePolicy, StepsOfASearchAreOfTheRun) {
  const auto make = [](const char* at) {
    return make_policy(parse_plan(std::string("xattention:refresh=at_steps,at=") + at), {}, "", "",
                       0, 4);
  };
  EXPECT_EQ(make("0+3").rules().size(), 1u);
  for (const char* bad : {"4", "99", "1+4", "2-5"})
    EXPECT_THAT(error_of([&] { make(bad); }), HasSubstr("expected steps below 4")) << bad;
}

TEST(Policy, DenseReasonsReachTheTrace) {
  const std::unique_ptr<Backend> backend = make_backend("ref");
  const Input in = make_input({{2, 3, 4}});
  Engine engine(*backend,
                make_policy(parse_plan("xattention:block=8,stride=4"), {}, "1", "2", 0, 50));
  EXPECT_EQ(attend(engine, site_at(0), in).reason, "dense-steps");
  EXPECT_EQ(attend(engine, site_at(1, 2), in).reason, "dense-layers");
  EXPECT_EQ(attend(engine, site_at(1, 1), in).reason, "");
  Engine small(*backend, make_policy(parse_plan("xattention"), {}, "", "", 25, 50));
  EXPECT_EQ(attend(small, site_at(0), in).reason, "min-tokens");
}

TEST(Policy, OfSomeHeadsHasTheirValues) {
  Rule rule;
  rule.plan = parse_plan("xattention:stride=8");
  rule.plan.params.set_per_head("top_p", {0.1, 0.2, 0.3, 0.4});
  rule.plan.skip = parse_skip("recall:r=0.9");
  rule.plan.skip.param = {0.5f, 0.6f, 0.7f, 0.8f};
  Policy policy;
  policy.add(rule);
  const Plan taken = policy.of_heads(1, 3, 4).rules()[0].plan;
  EXPECT_THAT(taken.params.values("top_p"), ElementsAre(0.2, 0.3));
  EXPECT_THAT(taken.params.values("stride"), ElementsAre(8.0));
  EXPECT_THAT(taken.skip.param, ElementsAre(0.6f, 0.7f));
  EXPECT_THAT(test::error_of([&] { policy.of_heads(1, 3, 5); }),
              HasSubstr("top_p: 4 values, expected 1 or 5"));
}

TEST(Policy, OfSomeHeadsHasTheirMasks) {
  auto fixed = std::make_shared<Selection>();
  fixed->q_layout = fixed->k_layout = BlockLayout::uniform(8, 4);
  fixed->mask = BlockMask(3, 2, 2);
  for (int64_t head = 0; head < 3; ++head)
    for (int32_t qb = 0; qb < 2; ++qb) fixed->mask.set(head, qb, head == 2 ? 1 : 0);
  Rule rule;
  rule.plan = parse_plan("fixed");
  rule.plan.fixed = fixed;
  Policy policy;
  policy.add(rule);
  const Plan taken = policy.of_heads(2, 3, 3).rules()[0].plan;
  ASSERT_EQ(taken.fixed->mask.num_heads(), 1);
  EXPECT_TRUE(taken.fixed->mask.get(0, 0, 1));
  EXPECT_FALSE(taken.fixed->mask.get(0, 0, 0));
}

}  // namespace
}  // namespace lacuna::test
