// SPDX-License-Identifier: Apache-2.0
#include "lacuna/calibrate/haste.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "lacuna/calibrate/probe.h"
#include "lacuna/calibrate/spectrum.h"
#include "lacuna/core/error.h"
#include "tests/calibrate/support.h"

namespace lacuna::test {
namespace {

HasteSettings small_settings() {
  HasteSettings settings;
  settings.host = "xattention:top_p=0.7,stride=4,block=8,refresh=drift,delta=0.2";
  settings.candidates = {0.3, 0.5, 1.0};
  settings.intervals = 2;
  return settings;
}

Calibration calibrate(Subject& subject, const HasteSettings& settings) {
  return calibrate_haste(subject, settings, temporary_folder() / "progress", {});
}

TEST(Haste, SameProfileAfterStops) {
  const HasteSettings settings = small_settings();
  const Calibration made = expect_same_after_stops([&](Subject& subject, const fs::path& progress) {
    return calibrate_haste(subject, settings, progress, {.save_every_seconds = 0.0});
  });
  ASSERT_EQ(made.profile.rules.size(), 3u);
  const Plan& plan = made.profile.rules[2].rule.plan;
  EXPECT_EQ(plan.method->name(), "xattention");
  EXPECT_EQ(plan.refresh.kind, RefreshKind::drift);
  EXPECT_EQ(plan.params.values("top_p").size(), 2u);
  EXPECT_EQ(plan.params.get("stride"), 4.0);
}

TEST(Haste, MeetsTheBudgetAtNoMoreErrorThanSharing) {
  const std::unique_ptr<Backend> backend = make_backend("ref");
  ToySubject subject(*backend);
  const Json shared = calibrate(subject, small_settings()).measurements;
  // Budget-neutral by default: the density of 0.7 everywhere.
  EXPECT_LE(shared["density"].get<double>(), shared["shared"]["density"].get<double>() + 1e-8);
  EXPECT_LT(shared["error"].get<double>(), shared["shared"]["error"].get<double>());
  EXPECT_EQ(shared["budget"], shared["shared"]["density"]);
  double last = -1.0;
  for (double budget : {1.0, 0.7, 0.5}) {
    HasteSettings settings = small_settings();
    settings.budget = budget;
    ToySubject again(*backend);
    const Json json = calibrate(again, settings).measurements;
    EXPECT_LE(json["density"].get<double>(), budget + 1e-8);
    EXPECT_GE(json["error"].get<double>(), last);
    last = json["error"].get<double>();
  }
  EXPECT_GT(last, 0.0);
  HasteSettings settings = small_settings();
  settings.budget = 0.01;
  ToySubject again(*backend);
  EXPECT_THROW(calibrate(again, settings), Error);
}

// What is measured for one head is what a run with that profile has.
TEST(Haste, MeasuresTheErrorOfOneHead) {
  const std::unique_ptr<Backend> backend = make_backend("ref");
  ToySizes sizes;
  sizes.num_steps = sizes.num_prompts = 1;
  ToySubject subject(*backend, sizes);
  HasteSettings settings = small_settings();
  settings.intervals = 1;
  const Json json = calibrate(subject, settings).measurements;
  const Plan host = parse_plan(settings.host);
  const auto shape = subject.latent_shape();
  const Tensor residual(DType::f32, {72, 32}), dense(DType::f32, shape), sparse(DType::f32, shape);
  subject.begin(0);
  Engine plain(*backend, Policy());
  subject.run(plain, {0, 3}, residual, dense);
  for (const Json& head : json["heads"]) {
    Params params = host.params;
    std::vector<double> values(2, 1.0);
    values[head["head"].get<size_t>()] = 0.3;
    params.set_per_head("top_p", values);
    Engine engine(*backend, probe_policy(*host.method, params, head["layer"].get<int>()));
    subject.run(engine, {0, 3}, residual, sparse);
    const double error = weighted_error(band_errors(sparse, dense));
    EXPECT_NEAR(head["error"][0].get<double>(), error, 1e-4 * error + 1e-12);
    // Candidates ascend and 1 is dense.
    EXPECT_EQ(head["density"].back().get<double>(), 1.0);
    EXPECT_EQ(head["error"].back().get<double>(), 0.0);
    EXPECT_LT(head["density"][0].get<double>(), head["density"][1].get<double>());
  }
}

// Dropped blocks come back as means in a run with such a profile: so they do in the probes.
TEST(Haste, MeasuresWithTheHostsCompensation) {
  const std::unique_ptr<Backend> backend = make_backend("ref");
  ToySizes sizes;
  sizes.num_steps = sizes.num_prompts = 1;
  const auto errors = [&](const char* more) {
    ToySubject subject(*backend, sizes);
    HasteSettings settings = small_settings();
    settings.intervals = 1;
    settings.host += more;
    return calibrate(subject, settings).measurements["heads"][0]["error"];
  };
  const Json plain = errors(""), compensated = errors(",compensate=pooled_row");
  EXPECT_NE(plain[0], compensated[0]);
  EXPECT_EQ(compensated.back().get<double>(), 0.0) << "nothing dropped, nothing added";
}

TEST(Haste, RunsOnlyTheLayersAfterAHead) {
  const std::unique_ptr<Backend> backend = make_backend("ref");
  ToySizes sizes;
  sizes.num_steps = sizes.num_prompts = 1;
  ToySubject subject(*backend, sizes);
  HasteSettings settings = small_settings();
  settings.intervals = 1;
  int64_t done = 0, total = 0;
  WalkHooks hooks;
  hooks.progress = [&](int64_t d, int64_t t) { done = d, total = t; };
  calibrate_haste(subject, settings, temporary_folder() / "progress", hooks);
  // One forward for the velocity, two layers walking along; 4 candidates x 2 heads x (3 + 2 + 1).
  EXPECT_EQ(subject.layers_run, 3 + 2 + 4 * 2 * 6);
  EXPECT_LE(done, total);
}

TEST(Haste, TwoExpertsHaveTheirOwnTables) {
  const std::unique_ptr<Backend> backend = make_backend("ref");
  ToySizes sizes;
  sizes.second_expert_from = 2;
  ToySubject subject(*backend, sizes);
  const Calibration made = calibrate(subject, small_settings());
  ASSERT_EQ(made.profile.rules.size(), 6u);
  for (int i = 0; i < 6; ++i) EXPECT_EQ(made.profile.rules[i].rule.match.expert, i / 3);
  for (const Json& head : made.measurements["heads"])
    for (int step : head["steps"].get<std::vector<int>>())
      EXPECT_EQ(step >= 2, head["expert"] == 1);
}

// 50 steps in 4 intervals: [0,11], [12,24], [25,36], [37,49].
TEST(Haste, PublishedIntervals) {
  std::set<int> seen[4];
  for (int i = 0; i < 4; ++i)
    for (int k = 0; k < 500; ++k) seen[i].insert(sample_step(0, 50, i, 4, std::to_string(k)));
  const int first[] = {0, 12, 25, 37, 50};
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(*seen[i].begin(), first[i]);
    EXPECT_EQ(*seen[i].rbegin(), first[i + 1] - 1);
  }
}

// Which prompt a head has says nothing about its steps: 16 heads have far more than one step of an
// interval per prompt.
TEST(Haste, PromptsAndStepsAreDrawnApart) {
  const std::unique_ptr<Backend> backend = make_backend("ref");
  ToySizes sizes;
  sizes.num_layers = sizes.num_heads = sizes.num_prompts = 4;
  sizes.num_steps = 16;
  ToySubject subject(*backend, sizes);
  HasteSettings settings = small_settings();
  settings.candidates = {0.7};
  settings.intervals = 4;
  const Json json = calibrate(subject, settings).measurements;
  std::set<std::pair<int, int>> seen[4];
  for (const Json& head : json["heads"])
    for (int i = 0; i < 4; ++i)
      seen[i].insert({head["prompt"].get<int>(), head["steps"][static_cast<size_t>(i)].get<int>()});
  for (const auto& pairs : seen) EXPECT_GT(pairs.size(), 6u);  // of 16; 4 when they move together
}

// Any method can be the host: orders and explicit blocks of one head serve the others densely.
TEST(OneHead, OtherHeadsStayDense) {
  const std::unique_ptr<Backend> backend = make_backend("ref");
  ToySubject subject(*backend);
  subject.begin(0);
  const auto shape = subject.latent_shape();
  const Tensor residual(DType::f32, {72, 32}), dense(DType::f32, {72, 32}),
      velocity(DType::f32, shape);
  Engine plain(*backend, Policy());
  subject.run(plain, {0, 1}, dense, velocity);
  for (const char* spec : {"window:tile_frames=1,tile_height=2,tile_width=2,window_frames=1,"
                           "window_height=1,window_width=1",
                           "radial:block=8,decay=0.05", "xattention:top_p=0.2,stride=4,block=8"}) {
    const Plan host = parse_plan(spec);
    double density = 0.0;
    const OneHead method(*host.method, 1, &density);
    Engine engine(*backend, probe_policy(method, host.params, 0));
    subject.run(engine, {0, 1}, residual, velocity);
    EXPECT_LT(density, 1.0) << spec;
    EXPECT_NEAR(engine.trace().entries().back().qk_density, 0.5 + 0.5 * density, 1e-12) << spec;
    double own = 0.0, other = 0.0;
    for (int64_t i = 0; i < 72 * 32; ++i)
      (i % 32 < 16 ? other : own) +=
          std::abs(double{residual.as<float>()[i]} - dense.as<float>()[i]);
    EXPECT_GT(own, 1e-3) << spec;
    EXPECT_LT(other, 1e-4) << spec;
  }
}

TEST(Haste, BadSettingsAreErrorsBeforeStepZero) {
  const std::unique_ptr<Backend> backend = make_backend("ref");
  ToySubject subject(*backend);
  const auto refused = [&](auto change) {
    HasteSettings settings = small_settings();
    change(settings);
    EXPECT_THROW(calibrate(subject, settings), Error);
  };
  refused([](auto& s) { s.host = "fixed"; });
  refused([](auto& s) { s.host = "nothing"; });
  refused([](auto& s) { s.host = "xattention:refresh=carry"; });  // without a skip rule
  refused([](auto& s) {                                           // a probe would only look
    s.host = "adaspa:tiers=0,block=8";
    s.parameter = "density";
  });
  refused([](auto& s) { s.parameter = "stride"; });  // one value for all heads
  refused([](auto& s) { s.parameter = "nothing"; });
  refused([](auto& s) { s.candidates = {1.5}; });
  refused([](auto& s) { s.intervals = 0; });
  refused([](auto& s) { s.dense_steps = "77"; });
  EXPECT_EQ(subject.layers_run, 0);
}

TEST(Progress, OfOtherSettingsIsRefused) {
  const std::unique_ptr<Backend> backend = make_backend("ref");
  const fs::path progress = temporary_folder() / "progress";
  const auto stopped = [&](const HasteSettings& settings, int at) {
    ToySubject subject(*backend);
    subject.on_layer = [&] {
      if (subject.layers_run == at) throw Stop();
    };
    calibrate_haste(subject, settings, progress, {});
  };
  EXPECT_THROW(stopped(small_settings(), 20), Stop);
  HasteSettings other = small_settings();
  other.candidates = {0.4};
  EXPECT_THROW(stopped(other, 20), Error);
  EXPECT_THROW(stopped(small_settings(), 20), Stop);
  std::ofstream(progress) << "not a safetensors file";
  EXPECT_THROW(stopped(small_settings(), 20), Error);
}

TEST(Calibration, FileNames) {
  const CalibrationFiles files{"a/b.profile.json"};
  EXPECT_EQ(files.measurements(), "a/b.measurements.json");
  EXPECT_EQ(files.progress(), "a/b.profile.json.progress.safetensors");
  EXPECT_EQ(CalibrationFiles{"b.json"}.measurements(), "b.measurements.json");
}

}  // namespace
}  // namespace lacuna::test
