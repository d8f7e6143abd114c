// SPDX-License-Identifier: Apache-2.0
#include "lacuna/calibrate/spectrum.h"

#include <kiss_fftnd.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <vector>

#include "lacuna/core/error.h"

namespace lacuna {

namespace {

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Transform = std::unique_ptr<kiss_fftnd_state, Free>;

// Whether index i of n is a low frequency: min(i, n - i) / n cycles per sample.
bool is_low(int64_t i, int64_t n) {
  return static_cast<double>(std::min(i, n - i)) < kBandCutoff * static_cast<double>(n);
}

void add_energies(const std::vector<kiss_fft_cpx>& spectrum, const TensorView& shape,
                  BandEnergies& bands) {
  size_t at = 0;
  for (int64_t t = 0; t < shape.shape[1]; ++t)
    for (int64_t y = 0; y < shape.shape[2]; ++y)
      for (int64_t x = 0; x < shape.shape[3]; ++x, ++at) {
        const bool low_space = is_low(y, shape.shape[2]) && is_low(x, shape.shape[3]);
        const int band = (is_low(t, shape.shape[1]) ? 0 : 2) + (low_space ? 0 : 1);
        const double re = spectrum[at].r, im = spectrum[at].i;
        bands[band] += re * re + im * im;
      }
}

}  // namespace

BandEnergies band_errors(const TensorView& sparse, const TensorView& dense) {
  LACUNA_CHECK(sparse.rank == 4 && sparse.shape == dense.shape && sparse.contiguous() &&
                   dense.contiguous() && dense.numel() > 0,
               "band_errors: {} and {}, expected two equal [channels, frames, height, width]",
               sparse.describe(), dense.describe());
  const int dims[] = {static_cast<int>(dense.shape[1]), static_cast<int>(dense.shape[2]),
                      static_cast<int>(dense.shape[3])};
  const Transform transform(kiss_fftnd_alloc(dims, 3, 0, nullptr, nullptr));
  LACUNA_CHECK(transform != nullptr, "band_errors: no memory for a transform of {}x{}x{}", dims[0],
               dims[1], dims[2]);
  const int64_t channels = dense.shape[0], n = dense.numel() / channels;
  const float *a = sparse.as<float>(), *b = dense.as<float>();
  std::vector<kiss_fft_cpx> field(static_cast<size_t>(n)), spectrum(static_cast<size_t>(n));
  BandEnergies bands{};
  // Two real channels as one complex field: bands are symmetric in the sign of the frequency, so
  // the cross terms of the pair cancel inside each band.
  for (int64_t c = 0; c < channels; c += 2) {
    const bool pair = c + 1 < channels;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t at = c * n + i;
      field[i] = {a[at] - b[at], pair ? a[at + n] - b[at + n] : 0.0f};
    }
    kiss_fftnd(transform.get(), field.data(), spectrum.data());
    add_energies(spectrum, dense, bands);
  }
  double energy = 0.0;  // of the dense velocity; its spectrum holds n times as much
  for (int64_t i = 0; i < channels * n; ++i) energy += double{b[i]} * b[i];
  constexpr double kSmall = 1e-30;
  for (double& band : bands) band /= energy * static_cast<double>(n) + kSmall;
  return bands;
}

double weighted_error(const BandEnergies& errors, const BandEnergies& weights) {
  double sum = 0.0;
  for (int band = 0; band < kNumBands; ++band) sum += weights[band] * errors[band];
  return sum;
}

}  // namespace lacuna
