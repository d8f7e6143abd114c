// SPDX-License-Identifier: Apache-2.0
#include "lacuna/calibrate/calibatt.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "lacuna/calibrate/probe.h"
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

// The block mass of every layer, [heads, query blocks, key blocks], in one dense step.
std::vector<std::vector<float>> masses_of_step(ToySubject& subject) {
  std::vector<std::vector<float>> masses;
  const int64_t tokens = subject.target().grid.tokens();
  Observer::Hooks hooks;
  hooks.block = small_settings().block;
  hooks.mass = [&](const Observation& seen) {
    const int64_t blocks = tokens / small_settings().block;  // whole ones
    masses.emplace_back(seen.block_mass,
                        seen.block_mass + subject.target().num_heads * blocks * blocks);
  };
  const Observer observer(std::move(hooks));
  Engine engine(subject.backend(), probe_policy(observer, Params()));
  const Tensor residual(DType::f32, {tokens, subject.width()});
  const Tensor velocity(DType::f32, subject.latent_shape());
  subject.run(engine, {0, subject.target().num_layers}, residual, velocity);
  subject.finish_step(engine, velocity);
  return masses;
}

// Every row keeps its largest blocks, and no more of them than reach the share.
void expect_minimal_cover(const BlockMask& mask, std::span<const float> mass, double share) {
  for (int64_t h = 0; h < mask.num_heads(); ++h)
    for (int32_t qb = 0; qb < mask.num_q_blocks(); ++qb) {
      double kept = 0.0, least = 1.0, dropped = 0.0, most = 0.0;
      for (int32_t kb = 0; kb < mask.num_k_blocks(); ++kb) {
        const double x = mass[(h * mask.num_q_blocks() + qb) * mask.num_k_blocks() + kb];
        const bool keeps = mask.get(h, qb, kb);
        (keeps ? kept : dropped) += x;
        if (keeps) least = std::min(least, x);
        if (!keeps) most = std::max(most, x);
      }
      SCOPED_TRACE(fmt::format("head {} query block {}", h, qb));
      EXPECT_NEAR(kept + dropped, 1.0, 1e-5);
      EXPECT_GE(kept, share - 1e-5);
      EXPECT_LT(kept - least, share + 1e-5);
      EXPECT_GE(least, most);
    }
}

// One prompt, no merging and no sharing: the vote is that prompt's minimal cover of the exact mass.
TEST(CalibAtt, OnePromptVotesItsMinimalCover) {
  constexpr double kShare[] = {0.6, 0.4103638};  // 0.3 + (0.6 - 0.3) e^(-2 step / 2)
  const std::unique_ptr<Backend> backend = make_backend("ref");
  ToySizes sizes;
  sizes.num_prompts = 1;
  sizes.num_steps = 2;
  CalibAttSettings settings = small_settings();
  settings.gap = settings.anchors = 0;
  settings.share_iou = 2.0;  // none alike
  ToySubject subject(*backend, sizes), looked(*backend, sizes);
  const Policy policy = calibrate(subject, settings).profile.policy();
  looked.begin(0);
  for (int step = 0; step < sizes.num_steps; ++step) {
    const auto masses = masses_of_step(looked);
    ASSERT_EQ(masses.size(), 3u);
    for (int layer = 0; layer < sizes.num_layers; ++layer) {
      SCOPED_TRACE(fmt::format("step {} layer {}", step, layer));
      Site site;
      site.step = step, site.layer = layer;
      const auto& fixed = policy.at(site).plan.fixed;
      ASSERT_NE(fixed, nullptr);
      fixed->mask.validate();
      expect_minimal_cover(fixed->mask, masses[static_cast<size_t>(layer)], kShare[step]);
    }
  }
}

TEST(CalibAtt, AllOfTheMassIsEveryBlock) {
  const std::unique_ptr<Backend> backend = make_backend("ref");
  ToySizes sizes;
  sizes.num_prompts = sizes.num_steps = 1;
  CalibAttSettings settings = small_settings();
  settings.anchors = 0;
  settings.energy = {.floor = 1.0, .start = 1.0, .decay = 0.0};
  ToySubject subject(*backend, sizes);
  for (const ProfileRule& item : calibrate(subject, settings).profile.rules)
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

// Rows 0 and 2 have anchor 1; row 0 is like it, row 2 is not.
TEST(RowSimilarity, OfAnEvenNumberOfRowsIsTheMeanOfTheMiddleTwo) {
  const auto rows = [](int64_t first, int64_t, float* p) {
    for (int64_t j = 0; j < 4; ++j) p[j] = j == first / 2 ? 1.0f : 0.0f;
  };
  EXPECT_NEAR(row_similarity({1, 4, 1}, 2, rows), 0.5, 1e-9);
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
