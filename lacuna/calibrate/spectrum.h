// SPDX-License-Identifier: Apache-2.0
// HASTE's error of a velocity: energy of the difference in bands of the 3-D spectrum.
#pragma once

#include <array>

#include "lacuna/core/tensor.h"

namespace lacuna {

// Low or high in time, then in space.
enum Band { kLowLow, kLowHigh, kHighLow, kHighHigh, kNumBands };
using BandEnergies = std::array<double, kNumBands>;

// Weights of the bands (arXiv 2605.14513, eq. 11).
inline constexpr BandEnergies kBandWeights = {1.0, 0.5, 0.01, 0.01};
// Cycles per sample below which a frequency is low; in space both axes must be. Cut-offs are not
// published.
inline constexpr double kBandCutoff = 0.25;

// Per band sum |FFT(sparse - dense)|^2 / sum |FFT(dense)|^2 over latent time, height and width,
// energies summed over channels. Both [channels, frames, height, width] f32 contiguous. The bands
// add up to |sparse - dense|^2 / |dense|^2 (Parseval).
BandEnergies band_errors(const TensorView& sparse, const TensorView& dense);
// Sum of weight times band.
double weighted_error(const BandEnergies& errors, const BandEnergies& weights = kBandWeights);

}  // namespace lacuna
