// SPDX-License-Identifier: Apache-2.0
#include "lacuna/calibrate/recall.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "lacuna/calibrate/probe.h"
#include "lacuna/core/error.h"
#include "tests/calibrate/support.h"
#include "tests/support/attend_case.h"

namespace lacuna::test {
namespace {

// Ratios of every row of a head.
std::vector<double> ratios_of(const AttendCase& c, int64_t head) {
  const AttendSpec& s = c.spec();
  const int64_t pieces = (s.k_len + kVoteKeys - 1) / kVoteKeys;
  std::vector<double> all(static_cast<size_t>(s.q_len * pieces));
  std::vector<float> logits(static_cast<size_t>(s.k_len));
  for (int64_t i = 0; i < s.q_len; ++i) {
    for (int64_t j = 0; j < s.k_len; ++j) {
      double sum = 0.0;
      for (int64_t d = 0; d < s.head_dim; ++d)
        sum += c.q().as<float>()[head * c.q().stride[0] + i * c.q().stride[1] + d] *
               c.k().as<float>()[head * c.k().stride[0] + j * c.k().stride[1] + d];
      logits[static_cast<size_t>(j)] = static_cast<float>(sum * c.sm_scale());
    }
    piece_ratios(logits, std::span(all).subspan(static_cast<size_t>(i * pieces)));
  }
  return all;
}

double kappa_of(const AttendCase& c, double quantile) {
  std::vector<int64_t> bins(KappaHistogram::kBins);
  KappaHistogram histogram(bins);
  for (int64_t head = 0; head < c.spec().heads; ++head)
    for (double ratio : ratios_of(c, head)) histogram.add(ratio);
  return histogram.quantile(quantile);
}

// The last keys of these rows are flat while the others are peaked: pieces of the largest ratio and
// of small ones meet in one row.
void flatten_tail(const AttendCase& c) {
  const AttendSpec& s = c.spec();
  for (int64_t h = 0; h < s.heads; ++h)
    for (int64_t j = s.k_len * 2 / 3; j < s.k_len; ++j)
      for (int64_t d = 0; d < s.head_dim; ++d)
        c.k().as<float>()[h * c.k().stride[0] + j * c.k().stride[1] + d] = d == 0 ? -0.5f : 0.0f;
}

TEST(RecallKappa, LargestRatioCertifiesTheRule) {
  const std::unique_ptr<Backend> backend = make_backend("ref");
  int dropped = 0;
  for (double sharpness : {0.3, 1.0, 4.0})
    for (double r : {0.6, 0.9})
      for (bool flat : {false, true}) {
        AttendSpec spec{.heads = 1, .q_len = 130, .k_len = 1000, .head_dim = 32};
        spec.pattern = Pattern::structured;
        spec.sharpness = sharpness;
        AttendCase c(spec);
        if (flat) flatten_tail(c);
        const double kappa = kappa_of(c, 1.0);
        ASSERT_LE(kappa, 1.0);
        const AttendResult all = c.run(*backend);
        c.set_skip(SkipKind::recall, static_cast<float>(r), static_cast<float>(kappa));
        const AttendResult kept = c.run(*backend);
        dropped += kept.pv_pairs[0] < all.pv_pairs[0];
        for (int64_t i = 0; i < spec.q_len; ++i)
          EXPECT_GE(std::exp(double{kept.lse[i]} - all.lse[i]), r - 1e-4)
              << "sharpness " << sharpness << " r " << r << " row " << i;
      }
  EXPECT_GE(dropped, 4);  // else the promise is empty
}

TEST(RecallKappa, MeasuredKappaSkipsMoreThanOne) {
  const std::unique_ptr<Backend> backend = make_backend("ref");
  int64_t safe = 0, measured = 0;
  for (double sharpness : {0.5, 1.0, 2.0, 4.0}) {
    AttendSpec spec{.heads = 1, .q_len = 128, .k_len = 1280, .head_dim = 32};
    spec.pattern = Pattern::structured;
    spec.sharpness = sharpness;
    AttendCase c(spec);
    const double q90 = kappa_of(c, 0.9);
    EXPECT_LT(q90, kappa_of(c, 1.0));
    c.set_skip(SkipKind::recall, 0.9f, 1.0f);
    safe += c.run(*backend).pv_pairs[0];
    c.set_skip(SkipKind::recall, 0.9f, static_cast<float>(q90));
    measured += c.run(*backend).pv_pairs[0];
  }
  EXPECT_LT(measured, safe);
}

TEST(RecallKappa, RatiosOfWorkedRows) {
  std::vector<float> logits(kVoteKeys + 2, 3.0f);  // flat: ratio 1
  logits[kVoteKeys] = 0.0f;                        // a short piece: (1 + e^-ln 4) / 2
  logits[kVoteKeys + 1] = -std::log(4.0f);
  std::vector<double> ratios(2);
  piece_ratios(logits, ratios);
  EXPECT_NEAR(ratios[0], 1.0, 1e-12);
  EXPECT_NEAR(ratios[1], 0.625, 1e-6);
}

TEST(RecallKappa, HistogramQuantilesAreNeverBelowTheTruth) {
  std::vector<int64_t> bins(KappaHistogram::kBins);
  KappaHistogram histogram(bins);
  EXPECT_EQ(histogram.quantile(0.9), 1.0);
  std::vector<double> values;
  for (int i = 0; i < 1000; ++i)
    values.push_back(std::exp2(-7.0 * (0.5 + 0.5 * hash_uniform("q", static_cast<uint64_t>(i)))));
  values.push_back(1.0);
  values.push_back(1.0 / kVoteKeys);
  for (double v : values) histogram.add(v);
  std::sort(values.begin(), values.end());
  for (double q : {0.001, 0.5, 0.9, 0.99, 1.0}) {
    const double truth = values[static_cast<size_t>(std::ceil(q * values.size())) - 1];
    EXPECT_GE(histogram.quantile(q), truth * (1 - 1e-12)) << q;
    EXPECT_LE(histogram.quantile(q), truth * 1.005) << q;
  }
  EXPECT_EQ(histogram.quantile(1.0), 1.0);
}

// Also where n is no multiple: 600 of 1000 rows are not the first 600.
TEST(RecallKappa, RowsAreSpreadOverAllOfThem) {
  for (const auto& [n, wanted] : {std::pair{72, 64}, {1000, 600}, {8192, 64}, {7, 7}, {5, 1}}) {
    int64_t before = -1;
    for (int64_t i = 0; i < wanted; ++i) {
      const int64_t row = spread_row(i, wanted, n);
      EXPECT_GT(row, before) << n << " " << wanted;
      EXPECT_LE(row - before, n / wanted + 1) << n << " " << wanted;
      before = row;
    }
    EXPECT_LT(before, n);
    EXPECT_GE(before, n - 1 - n / (2 * wanted)) << n << " " << wanted;
  }
}

// Of the ratios of these rows of one head, all keys in one piece.
double largest_ratio(const SelectArgs& args, int64_t head, std::initializer_list<int64_t> rows) {
  const int64_t n = args.seq_len(), d = args.q.shape[2];
  double largest = 0.0;
  for (const int64_t row : rows) {
    std::vector<float> logits;
    for (int64_t key = 0; key < n; ++key) {
      double sum = 0.0;
      for (int64_t i = 0; i < d; ++i)
        sum += double{args.q.as<float>()[head * args.q.stride[0] + row * args.q.stride[1] + i]} *
               args.k.as<float>()[head * args.k.stride[0] + key * args.k.stride[1] + i];
      logits.push_back(static_cast<float>(sum * args.sm_scale));
    }
    double ratio = 0.0;
    piece_ratios(logits, {&ratio, 1});
    largest = std::max(largest, ratio);
  }
  return largest;
}

// Three of 72 rows are the middles of its thirds, not the first ones.
TEST(Recall, LooksAtRowsUpToTheEndOfTheClip) {
  const std::unique_ptr<Backend> backend = make_backend("ref");
  ToySizes sizes;
  sizes.num_steps = sizes.num_prompts = 1;
  ToySubject subject(*backend, sizes);
  RecallSettings settings;
  settings.quantile = 1.0;
  settings.rows = 3;
  const Calibration made = calibrate_recall(subject, settings, temporary_folder() / "p", {});
  ASSERT_EQ(made.profile.rules.size(), 3u);
  int compared = 0, others = 0;
  const Observer observer({.inputs = [&](const SelectArgs& args) {
    ASSERT_EQ(args.seq_len(), 72);
    const Plan& plan = made.profile.rules[static_cast<size_t>(args.site.layer)].rule.plan;
    for (int64_t head = 0; head < sizes.num_heads; ++head, ++compared) {
      const double spread = largest_ratio(args, head, {12, 36, 60});
      const double kappa = plan.skip.kappa[static_cast<size_t>(head)];
      EXPECT_GE(kappa, spread * (1 - 1e-4)) << args.site.layer << " " << head;
      EXPECT_LE(kappa, spread * 1.006) << args.site.layer << " " << head;  // a bin is 0.5 %
      others += std::abs(largest_ratio(args, head, {0, 1, 2}) / spread - 1.0) > 0.02;
    }
  }});
  Engine engine(*backend, probe_policy(observer, Params()));
  const Tensor residual(DType::f32, {72, subject.width()});
  const Tensor velocity(DType::f32, subject.latent_shape());
  subject.begin(0);
  subject.run(engine, {0, sizes.num_layers}, residual, velocity);
  EXPECT_EQ(compared, 6);
  EXPECT_GT(others, 0) << "the first rows would have done";
}

TEST(Recall, WritesKappaPerHeadAndResumes) {
  RecallSettings settings;
  settings.intervals = 2;
  settings.rows = 16;
  settings.dense_steps = "1";
  const auto run = [&](Subject& subject, const fs::path& progress) {
    return calibrate_recall(subject, settings, progress, {.save_every_seconds = 0.0});
  };
  const Calibration made = expect_same_after_stops(run);
  ASSERT_EQ(made.profile.rules.size(), 1u + 3u);  // dense steps, then every layer
  EXPECT_EQ(made.profile.rules[0].rule.reason, "dense-steps");
  const Plan& plan = made.profile.rules[1].rule.plan;
  EXPECT_EQ(plan.method->name(), "dense");
  EXPECT_EQ(plan.skip.kind, SkipKind::recall);
  ASSERT_EQ(plan.skip.kappa.size(), 2u);
  for (float kappa : plan.skip.kappa) {
    EXPECT_GT(kappa, 1.0f / kVoteKeys);
    EXPECT_LE(kappa, 1.0f);
  }
  // 72 keys make one piece: rows x prompts x steps ratios per head.
  EXPECT_EQ(made.measurements["heads"].size(), 6u);
  settings.quantile = 1.0;
  const std::unique_ptr<Backend> backend = make_backend("ref");
  ToySubject subject(*backend);
  const Calibration largest = run(subject, temporary_folder() / "b");
  for (size_t i = 0; i < plan.skip.kappa.size(); ++i)
    EXPECT_GE(largest.profile.rules[1].rule.plan.skip.kappa[i], plan.skip.kappa[i]);
}

TEST(Recall, BadSettingsAreErrorsBeforeStepZero) {
  const std::unique_ptr<Backend> backend = make_backend("ref");
  ToySubject subject(*backend);
  const auto refused = [&](auto change) {
    RecallSettings settings;
    change(settings);
    EXPECT_THROW(calibrate_recall(subject, settings, temporary_folder() / "p", {}), Error);
  };
  refused([](auto& s) { s.quantile = 0.0; });
  refused([](auto& s) { s.recall = 2.0; });
  refused([](auto& s) { s.host = "fixed"; });
  refused([](auto& s) { s.dense_steps = "99"; });
  EXPECT_EQ(subject.layers_run, 0);
}

}  // namespace
}  // namespace lacuna::test
