// SPDX-License-Identifier: Apache-2.0
#include "lacuna/report/doctor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "lacuna/calibrate/calibration.h"
#include "lacuna/core/error.h"
#include "lacuna/core/rng.h"
#include "lacuna/report/dense_pass.h"
#include "tests/calibrate/toy_subject.h"
#include "tests/support/local_call.h"
#include "tests/support/temp_folder.h"

namespace lacuna::test {
namespace {

constexpr char kMethod[] = "xattention:block=16,stride=4";

MeasuredCost made_cost(double dense_ms, double select_ms) {
  return {CostModel(dense_ms, select_ms, {{0.1, 10.0}, {1.0, 100.0}}), 2, 1.0};
}

HeadNeed need(double density, double loss = 0.01) {
  return {.fullness = density, .density = density, .loss = loss, .weight = 1.0, .reached = true};
}

Examined examined(std::vector<Finding> findings) {
  return {replay_case(kMethod, "none"), 0.05, std::move(findings)};
}

TEST(Examination, LocalHeadsNeedLess) {
  const auto backend = make_backend("cpu");
  const LocalCall local({6.0f, 0.0f});
  Examination examination(*backend, replay_case(kMethod, "none"), 0.05);
  examination.look(local.at({.step = 2, .num_steps = 8, .layer = 3}));
  ASSERT_EQ(examination.result().findings.size(), 1u);
  const Finding& found = examination.result().findings[0];
  EXPECT_EQ(found.step, 2);
  EXPECT_EQ(found.layer, 3);
  ASSERT_EQ(found.heads.size(), 2u);
  EXPECT_TRUE(found.heads[0].reached);
  EXPECT_LE(found.heads[0].loss, 0.05);
  EXPECT_LT(found.heads[0].density, 0.3);
  EXPECT_GT(found.heads[1].density, 0.6);
  EXPECT_GT(found.heads[0].weight, 0.0);
}

// A mask with the value that was found has the density and loss that were found.
TEST(Examination, WhatIsFoundCanBeHadAgain) {
  const auto backend = make_backend("cpu");
  const LocalCall local({5.0f});
  const RecordedCall call = local.at({.num_steps = 8});
  Examination examination(*backend, replay_case(kMethod, "none"), 0.1);
  examination.look(call);
  const HeadNeed head = examination.result().findings[0].heads[0];
  ReplayCase again = replay_case(kMethod, "none");
  again.knob->set(again,
                  again.knob->sparse + head.fullness * (again.knob->full - again.knob->sparse));
  Replay replay(*backend, std::span(&call, 1), 1);
  const ReplayRow row = replay.run(again);
  EXPECT_DOUBLE_EQ(row.qk_density, head.density);
  EXPECT_NEAR(row.rel_l1, head.loss, 1e-6);
}

TEST(Examination, TheGreatestNeedOfSeveralPromptsStays) {
  const auto backend = make_backend("cpu");
  const LocalCall easy({6.0f}), hard({3.0f});
  const Site site{.step = 1, .num_steps = 4};
  const auto density = [&](std::vector<const LocalCall*> calls) {
    Examination examination(*backend, replay_case(kMethod, "none"), 0.05);
    for (const LocalCall* call : calls) examination.look(call->at(site));
    EXPECT_EQ(examination.result().findings.size(), 1u);
    return examination.result().findings[0].heads[0].density;
  };
  const double worst = density({&hard});
  EXPECT_LT(density({&easy}), worst);
  EXPECT_EQ(density({&easy, &hard}), worst);
  EXPECT_EQ(density({&hard, &easy}), worst);
}

TEST(Examination, RefusesWhatItCannotJudge) {
  const auto backend = make_backend("cpu");
  for (const char* method : {"window", "dense", "xattention:refresh=drift", "svg2:refresh=never"})
    EXPECT_THROW(Examination(*backend, replay_case(method, "none"), 0.05), Error) << method;
  EXPECT_THROW(Examination(*backend, replay_case("dense", "recall"), 0.05), Error);
  EXPECT_THROW(Examination(*backend, replay_case(kMethod, "none"), 0.0), Error);
}

TEST(Diagnose, NeverSlowerThanDense) {
  int sparse = 0, dense = 0;
  for (int round = 0; round < 300; ++round) {
    const std::string name = "doctor/" + std::to_string(round);
    uint64_t i = 0;
    const auto random = [&] { return hash_uniform(name, i++) / 2.0 + 0.5; };  // 0..1
    std::vector<Finding> findings;
    for (int layer = 0; layer < 4; ++layer)
      for (const int step : {1, 5}) {
        Finding f{0, step, layer, {}};
        for (int head = 0; head < 3; ++head) {
          f.heads.push_back(need(0.02 + 0.98 * random() * random()));
          f.heads.back().reached = random() > 0.1;
        }
        findings.push_back(std::move(f));
      }
    MeasuredCost cost = made_cost(20.0 + 100.0 * random(), 40.0 * random());
    const double break_even = cost.model.break_even();
    cost.full_density = round % 3 == 0 ? 2.0 / 3 : 1.0;
    const Diagnosis d =
        diagnose(examined(findings), cost, 512, {10, {}, {}, {0, 1, 2, 3}}, random());
    EXPECT_GE(d.attention_speedup, 1.0);
    EXPECT_GE(*d.step_speedup, 1.0);
    EXPECT_LE(*d.step_speedup, d.attention_speedup + 1e-12);
    for (const Decision& x : d.decisions) {
      (x.sparse ? sparse : dense) += 1;
      EXPECT_EQ(x.sparse, x.why.empty());
      if (!x.sparse) continue;
      EXPECT_TRUE(d.pays);
      EXPECT_LT(x.sparse_ms, cost.model.dense_ms());
      EXPECT_NEAR(x.sparse_ms, cost.model.sparse_ms(x.head_density), 1e-9);
      for (const double density : x.head_density)
        EXPECT_TRUE(cost.full_density < 1.0 || density <= break_even || density == 1.0);
    }
    const std::string text = verdict(d, cost);
    EXPECT_THAT(text, testing::HasSubstr(d.pays ? "pays here" : "does not pay here"));
  }
  EXPECT_GT(sparse, 100);
  EXPECT_GT(dense, 100);
}

TEST(Diagnose, StepsBelongToTheNearestExaminedOne) {
  const Diagnosis d =
      diagnose(examined({{0, 9, 0, {need(0.1)}}, {0, 1, 0, {need(0.1)}}, {1, 15, 0, {need(0.1)}}}),
               made_cost(100.0, 1.0), 512, {20, {}, {}, {0}}, {});
  ASSERT_EQ(d.decisions.size(), 3u);
  EXPECT_EQ(d.decisions[0].step_begin, 0);
  EXPECT_EQ(d.decisions[0].step_end, 6);
  EXPECT_EQ(d.decisions[1].step_begin, 6);
  EXPECT_EQ(d.decisions[1].step_end, 20);
  EXPECT_EQ(d.decisions[2].step_begin, 0);
  EXPECT_EQ(d.decisions[2].step_end, 20);
  EXPECT_TRUE(d.experts);
}

// Two of four steps are of a network that was not examined: no rule reaches it, and it counts as
// dense.
TEST(Diagnose, RulesAreForTheNetworkThatWasExamined) {
  const Examined what = examined({{0, 1, 0, {need(0.1)}}});
  const Diagnosis d = diagnose(what, made_cost(100.0, 1.0), 512, {4, {0, 0, 1, 1}, {}, {0}}, {});
  EXPECT_NEAR(d.density, (2 * 0.1 + 2) / 4, 1e-12);
  const Profile made = doctor_profile(d, what, {}, {});
  ASSERT_EQ(made.rules.size(), 2u);
  EXPECT_EQ(made.rules[0].rule.match.expert, 0);
  const Policy policy = made.policy();
  Site other;
  other.step = 2, other.expert = 1;
  EXPECT_EQ(dense_reason(policy.at(other, 512)), "doctor");
  EXPECT_EQ(policy.index(policy.at(other, 512)), 1) << "a strict run asks for a rule";
}

// Recordings without a model: steps 0 and 1 need density 0.1, 2 and 3 the other network's 0.5.
TEST(Diagnose, AStepIsOfTheNetworkOfTheNearestFinding) {
  const Diagnosis d = diagnose(examined({{0, 0, 0, {need(0.1)}}, {1, 3, 0, {need(0.5)}}}),
                               made_cost(100.0, 1.0), 512, {4, {}, {}, {0}}, {});
  EXPECT_TRUE(d.experts);
  EXPECT_NEAR(d.density, (2 * 0.1 + 2 * 0.5) / 4, 1e-12);
}

// 10 steps, 2 dense, one of two layers examined: 8 of 20 calls take 1 + 10 ms instead of 100.
TEST(Diagnose, ExpectsByAmdahl) {
  Schedule schedule{10, {}, std::vector<bool>(10, false), {0, 1}};
  schedule.dense[0] = schedule.dense[1] = true;
  const Diagnosis d =
      diagnose(examined({{0, 5, 1, {need(0.1)}}}), made_cost(100.0, 1.0), 512, schedule, 0.5);
  EXPECT_NEAR(d.attention_speedup, 2000.0 / (12 * 100.0 + 8 * 11.0), 1e-12);
  EXPECT_NEAR(*d.step_speedup, 1.0 / (0.5 + 0.5 / d.attention_speedup), 1e-12);
  EXPECT_NEAR(d.density, (12 + 8 * 0.1) / 20, 1e-12);
}

TEST(Diagnose, SaysOfWhichLayersItSpeaks) {
  const MeasuredCost cost = made_cost(100.0, 1.0);
  const auto text = [&](std::vector<int> layers) {
    const Schedule schedule{1, {}, {}, std::move(layers), 4};
    return verdict(diagnose(examined({{0, 0, 2, {need(0.1)}}}), cost, 512, schedule, {}), cost);
  };
  EXPECT_THAT(text({2}),
              testing::AllOf(testing::HasSubstr("0.10 over the recorded layers (1 of 4)"),
                             testing::HasSubstr("9.09x in these layers.")));
  EXPECT_THAT(text({0, 1, 2, 3}), testing::AllOf(testing::HasSubstr("over the whole run"),
                                                 testing::HasSubstr("attention 1.29x.")));
}

TEST(Diagnose, LittleToGainIsDense) {
  const Diagnosis d = diagnose(examined({{0, 0, 0, {need(0.1)}}}), made_cost(100.0, 1.0), 512,
                               {1, {}, {}, {0}}, 0.01);
  EXPECT_FALSE(d.pays);
  EXPECT_FALSE(d.decisions[0].sparse);
  EXPECT_EQ(d.attention_speedup, 1.0);
  EXPECT_THAT(verdict(d, made_cost(100.0, 1.0)), testing::HasSubstr("gain"));
}

TEST(Diagnose, SaysWhyNot) {
  const MeasuredCost never = made_cost(10.0, 5.0);
  const auto with = [](double density, const MeasuredCost& cost) {
    return diagnose(examined({{0, 0, 0, {need(density), need(density)}}}), cost, 77,
                    {1, {}, {}, {0}}, {});
  };
  EXPECT_THAT(verdict(with(0.1, never), never), testing::HasSubstr("at 77 tokens"));
  const MeasuredCost half = made_cost(50.0, 0.0);
  EXPECT_THAT(verdict(with(0.9, half), half), testing::HasSubstr("only below 0.50"));
  EXPECT_EQ(with(0.9, half).decisions[0].why, "every head needs more than break-even");
}

// From a model to a profile that a generation takes.
TEST(Doctor, WritesAProfileForTheModel) {
  const auto backend = make_backend("cpu");
  ToySubject subject(*backend);
  Examination examination(*backend, replay_case("xattention:block=8,stride=4", "none"), 0.3);
  int64_t last = 0, whole = 0;
  const std::vector<int> steps = spread_steps(subject.target().num_steps());
  const DenseTiming timing = dense_pass(
      subject, 0, steps,
      [&](const Site& site, const auto&... inputs) {
        Recorder one(*backend, {}, 1 << 24);
        one.add(site, inputs...);
        examination.look(one.calls().front());
      },
      [&](int64_t done, int64_t total) { last = done, whole = total; });
  EXPECT_EQ(last, whole);
  EXPECT_GT(timing.step_ms, timing.attention_ms);
  EXPECT_GT(timing.attention_ms, 0.0);
  ASSERT_EQ(examination.result().findings.size(), 9u);

  const MeasuredCost cost = made_cost(100.0, 1.0);
  const Diagnosis d = diagnose(examination.result(), cost, subject.target().grid.tokens(),
                               {5, {}, {}, {0, 1, 2}}, timing.share());
  const Json sections = doctor_sections(d, examination.result(), cost);
  EXPECT_EQ(sections.size(), 6u);
  EXPECT_EQ(sections[3]["values"].size(), 3u);
  EXPECT_EQ(sections[3]["values"][0].size(), 2u);
  EXPECT_EQ(sections[4]["values"][0].size(), 3u);
  ASSERT_TRUE(d.pays);
  const Profile made =
      doctor_profile(d, examination.result(), subject.target(), dense_rules(5, "1"));
  const test::TempFolder temp;
  const auto path = temp.path() / "doctor.profile.json";
  save_profile(made, path);
  const Profile loaded = load_profile(path);
  EXPECT_NO_THROW(check_profile(loaded, subject.target()));
  const auto sparse = std::count_if(d.decisions.begin(), d.decisions.end(),
                                    [](const Decision& x) { return x.sparse; });
  EXPECT_EQ(loaded.rules.size(), 2 + static_cast<size_t>(sparse)) << "first steps, sparse, rest";
  EXPECT_GT(sparse, 0);
  const PolicyTiming run = policy_pass(subject, 0, loaded.policy());
  EXPECT_LT(run.density, 1.0);
  EXPECT_GT(run.total_ms, run.attention_ms);

  const Diagnosis no = diagnose(examination.result(), made_cost(1.0, 5.0), 72,
                                {5, {}, {}, {0, 1, 2}}, timing.share());
  const Profile dense =
      doctor_profile(no, examination.result(), subject.target(), dense_rules(5, "1"));
  ASSERT_EQ(dense.rules.size(), 1u);
  EXPECT_EQ(dense.rules[0].rule.plan.method, nullptr);
  EXPECT_EQ(dense.rules[0].rule.reason, "doctor");
}

TEST(DensePass, LooksEarlyInTheMiddleAndLate) {
  EXPECT_EQ(spread_steps(50), (std::vector<int>{5, 25, 45}));
  EXPECT_EQ(spread_steps(20), (std::vector<int>{2, 10, 18}));
  EXPECT_EQ(spread_steps(3), (std::vector<int>{0, 1, 2}));
  EXPECT_EQ(spread_steps(1), (std::vector<int>{0}));
  EXPECT_EQ(spread_layers(30), (std::vector<int>{0, 15, 29}));
  EXPECT_EQ(spread_layers(1), (std::vector<int>{0}));
}

TEST(DensePass, OneStepIsEnoughAndStepsMustBeThere) {
  const auto backend = make_backend("cpu");
  ToySubject subject(*backend);
  int calls = 0;
  const auto look = [&](const Site&, const auto&...) { ++calls; };
  const int first[] = {0}, outside[] = {5};
  EXPECT_GT(dense_pass(subject, 1, first, look).step_ms, 0.0);
  EXPECT_EQ(calls, 3);
  EXPECT_THROW(dense_pass(subject, 0, outside, look), Error);
  EXPECT_THROW(dense_pass(subject, 0, {}, look), Error);
}

}  // namespace
}  // namespace lacuna::test
