// SPDX-License-Identifier: Apache-2.0
#include "lacuna/calibrate/spectrum.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <numbers>
#include <numeric>

#include "lacuna/core/error.h"
#include "lacuna/core/rng.h"

namespace lacuna {
namespace {

Tensor noise(const char* name, std::initializer_list<int64_t> shape) {
  Tensor t(DType::f32, shape);
  fill_hash(name, 0.2, 1.0, {t.as<float>(), static_cast<size_t>(t.numel())});
  return t;
}

TEST(Spectrum, BandsAddUpToTheWholeError) {  // Parseval, for odd sizes and an odd channel too
  for (const auto& shape :
       {std::array<int64_t, 4>{1, 1, 1, 1}, {2, 3, 4, 6}, {3, 5, 7, 9}, {4, 21, 10, 12}}) {
    const std::initializer_list<int64_t> sizes = {shape[0], shape[1], shape[2], shape[3]};
    const Tensor a = noise("a", sizes), b = noise("b", sizes);
    double error = 0.0, energy = 0.0;
    for (int64_t i = 0; i < a.numel(); ++i) {
      error += std::pow(double{a.as<float>()[i]} - b.as<float>()[i], 2);
      energy += std::pow(double{b.as<float>()[i]}, 2);
    }
    const double total = weighted_error(band_errors(a, b), {1.0, 1.0, 1.0, 1.0});
    EXPECT_NEAR(total, error / energy, 2e-6 * error / energy) << shape[1];
  }
}

// dense = 1 everywhere, sparse = dense + a wave of the given frequencies.
BandEnergies of_wave(int t, int y, int x) {
  const Tensor dense(DType::f32, {1, 8, 8, 8}), sparse(DType::f32, {1, 8, 8, 8});
  for (int64_t i = 0; i < 512; ++i) {
    const double phase = 2.0 * std::numbers::pi *
                         (double(i / 64 * t) + double(i / 8 % 8 * y) + double(i % 8 * x)) / 8;
    dense.as<float>()[i] = 1.0f;
    sparse.as<float>()[i] = static_cast<float>(1.0 + std::cos(phase));
  }
  return band_errors(sparse, dense);
}

void expect_only(const BandEnergies& bands, Band band, double energy) {
  for (int i = 0; i < kNumBands; ++i)
    EXPECT_NEAR(bands[i], i == band ? energy : 0.0, 1e-6) << "band " << i;
}

TEST(Spectrum, WavesFallIntoTheirBands) {
  expect_only(of_wave(0, 0, 0), kLowLow, 1.0);
  expect_only(of_wave(1, 1, 0), kLowLow, 0.5);
  expect_only(of_wave(7, 0, 7), kLowLow, 0.5);   // 7 of 8 is the frequency -1
  expect_only(of_wave(2, 0, 0), kHighLow, 0.5);  // exactly the cut-off is high
  expect_only(of_wave(0, 3, 0), kLowHigh, 0.5);
  expect_only(of_wave(1, 1, 3), kLowHigh, 0.5);  // one high axis of space is enough
  expect_only(of_wave(3, 0, 2), kHighHigh, 0.5);
}

TEST(Spectrum, WeightsArePublished) {
  EXPECT_EQ(weighted_error({1.0, 10.0, 100.0, 1000.0}), 1.0 + 5.0 + 1.0 + 10.0);
}

TEST(Spectrum, RefusesOtherShapes) {
  EXPECT_THROW(band_errors(noise("a", {1, 2, 2, 2}), noise("b", {1, 2, 2, 3})), Error);
}

}  // namespace
}  // namespace lacuna
