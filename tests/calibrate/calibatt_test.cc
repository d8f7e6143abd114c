// SPDX-License-Identifier: Apache-2.0
#include "lacuna/calibrate/calibatt.h"

#include <gtest/gtest.h>

#include <cmath>

#include "lacuna/core/error.h"
#include "tests/calibrate/support.h"

namespace lacuna::test {
namespace {

CalibAttSettings small_settings() {
  CalibAttSettings settings;
  settings.block = 8;
  settings.energy = {.floor = 0.3, .start = 0.6, .decay = 2.0};
  settings.anchors = 2;
  return settings;
}

Calibration calibrate(Subject& subject, const CalibAttSettings& settings) {
  return calibrate_calibatt(subject, settings, temporary_folder() / "progress", {});
}

TEST(CalibAtt, SameProfileAfterStopsAndMasksRoundTrip) {
  const CalibAttSettings settings = small_settings();
  const Calibration made = expect_same_after_stops([&](Subject& subject, const fs::path& progress) {
    return calibrate_calibatt(subject, settings, progress, {.save_every_seconds = 0.0});
  });
  const fs::path folder = temporary_folder();
  const Profile loaded = load_profile(folder / "whole" / "c.profile.json");
  ASSERT_EQ(loaded.rules.size(), made.profile.rules.size());
  for (size_t i = 0; i < loaded.rules.size(); ++i) {
    EXPECT_EQ(loaded.rules[i].rule.plan.fixed->mask, made.profile.rules[i].rule.plan.fixed->mask);
    EXPECT_EQ(loaded.rules[i].rule.match, made.profile.rules[i].rule.match);
  }
}

// There a call that reports the mass of small blocks sums in another order than a dense one.
TEST(CalibAtt, SameProfileAfterStopsOnTheProcessor) {
  const CalibAttSettings settings = small_settings();
  expect_same_after_stops(
      [&](Subject& subject, const fs::path& progress) {
        return calibrate_calibatt(subject, settings, progress, {.save_every_seconds = 0.0});
      },
      {}, "cpu");
}

// One prompt and no merging: the vote is that prompt's minimal cover of the exact mass.
TEST(CalibAtt, OnePromptVotesItsMinimalCover) {
  const std::unique_ptr<Backend> backend = make_backend("ref");
  ToySizes sizes;
  sizes.num_prompts = sizes.num_steps = 1;
  ToySubject subject(*backend, sizes);
  CalibAttSettings settings = small_settings();
  settings.gap = 0;
  settings.anchors = 0;
  const Calibration made = calibrate(subject, settings);
  ASSERT_EQ(made.profile.rules.size(), 3u);
  for (const ProfileRule& item : made.profile.rules) {
    const BlockMask& mask = item.rule.plan.fixed->mask;
    EXPECT_LT(*item.density, 1.0);
    EXPECT_GT(*item.density, 0.0);
    mask.validate();
  }
  // Run with the profile, the kept mass of every block row reaches epsilon(0) = 0.6 on average.
  settings.energy = {.floor = 1.0, .start = 1.0, .decay = 0.0};
  ToySubject again(*backend, sizes);
  for (const ProfileRule& item : calibrate(again, settings).profile.rules)
    EXPECT_EQ(*item.density, 1.0);  // every block has mass
}

TEST(CalibAtt, SharesStepsAndCoversEveryStep) {
  const std::unique_ptr<Backend> backend = make_backend("ref");
  CalibAttSettings settings = small_settings();
  settings.share_iou = 0.0;  // all alike
  settings.anchors = 0;
  ToySubject subject(*backend);
  const Calibration one = calibrate(subject, settings);
  EXPECT_EQ(one.profile.rules.size(), 3u);
  settings.share_iou = 2.0;
  ToySubject again(*backend);
  const Calibration each = calibrate(again, settings);
  EXPECT_EQ(each.profile.rules.size(), 15u);
  const Policy shared = one.profile.policy(), own = each.profile.policy();
  for (int step = 0; step < 5; ++step)
    for (int layer = 0; layer < 3; ++layer) {
      Site site;
      site.step = step, site.layer = layer;
      BlockMask both = shared.at(site).plan.fixed->mask;
      both &= own.at(site).plan.fixed->mask;
      EXPECT_EQ(both, own.at(site).plan.fixed->mask);  // sharing only adds
    }
}

// With another boundary another network runs a step: masks of the first are not for it.
TEST(CalibAtt, RulesNameTheExpertThatWasLookedAt) {
  const std::unique_ptr<Backend> backend = make_backend("ref");
  ToySizes sizes;
  sizes.second_expert_from = 2;
  CalibAttSettings settings = small_settings();
  settings.share_iou = 0.0;  // all alike
  settings.anchors = 0;
  ToySubject subject(*backend, sizes);
  const Calibration made = calibrate(subject, settings);
  ASSERT_EQ(made.profile.rules.size(), 6u);
  for (const ProfileRule& item : made.profile.rules)
    EXPECT_EQ(item.rule.match.expert, item.rule.match.step_begin >= 2 ? 1 : 0);
}

TEST(CalibAtt, SimilarHeadsGetAnchors) {
  const std::unique_ptr<Backend> backend = make_backend("ref");
  CalibAttSettings settings = small_settings();
  const auto anchors = [&](double threshold) {
    settings.similarity = threshold;
    ToySubject subject(*backend);
    double sum = 0.0;
    for (const ProfileRule& item : calibrate(subject, settings).profile.rules)
      for (double a : item.rule.plan.params.values("anchors")) sum += a;
    return sum;
  };
  EXPECT_EQ(anchors(1.01), 0.0);
  EXPECT_GT(anchors(0.0), 0.0);
}

// Repetitive heads compute 2 of 4 rows of a frame, whatever was voted.
TEST(CalibAtt, ARuleHasTheDensityThatItRunsAt) {
  const std::unique_ptr<Backend> backend = make_backend("ref");
  CalibAttSettings settings = small_settings();
  for (const double threshold : {0.0, 1.01}) {
    settings.similarity = threshold;
    ToySubject subject(*backend);
    const Calibration made = calibrate(subject, settings);
    Engine engine(*backend, made.profile.policy());
    const Tensor residual(DType::f32, {subject.target().grid.tokens(), subject.width()});
    const Tensor velocity(DType::f32, subject.latent_shape());
    subject.begin(0);
    subject.run(engine, {0, 3}, residual, velocity);
    ASSERT_EQ(engine.trace().entries().size(), 3u);
    for (const TraceEntry& call : engine.trace().entries()) {
      const ProfileRule& item = made.profile.rules.at(static_cast<size_t>(call.rule));
      EXPECT_NEAR(*item.density, call.qk_density, 1e-12);
      EXPECT_EQ(item.rule.plan.params.get("anchors"), threshold == 0.0 ? 2.0 : 0.0);
    }
  }
}

TEST(RowSimilarity, OfEqualAndOrthogonalRows) {
  const VideoGrid grid{5, 6, 2};
  const auto fill = [&](auto weight) {
    return [&grid, weight](int64_t first, int64_t count, float* p) {
      for (int64_t i = 0; i < count; ++i)
        for (int64_t j = 0; j < grid.tokens(); ++j)
          p[i * grid.tokens() + j] = weight((first + i) / grid.width % grid.height, j);
    };
  };
  EXPECT_NEAR(row_similarity(grid, 2, fill([](int64_t, int64_t j) { return j + 1.0f; })), 1.0,
              1e-9);
  EXPECT_NEAR(
      row_similarity(grid, 2, fill([](int64_t row, int64_t j) { return row == j ? 1.0f : 0.0f; })),
      0.0, 1e-9);
}

TEST(CalibAtt, BadSettingsAreErrorsBeforeStepZero) {
  const std::unique_ptr<Backend> backend = make_backend("ref");
  ToySubject subject(*backend);
  const auto refused = [&](auto change) {
    CalibAttSettings settings = small_settings();
    change(settings);
    EXPECT_THROW(calibrate(subject, settings), Error);
  };
  refused([](auto& s) { s.share = 0.0; });
  refused([](auto& s) { s.block = 0; });
  refused([](auto& s) { s.energy.start = 1.5; });
  refused([](auto& s) { s.gap = -1; });
  refused([](auto& s) { s.dense_steps = "77"; });
  EXPECT_EQ(subject.layers_run, 0);
}

}  // namespace
}  // namespace lacuna::test
