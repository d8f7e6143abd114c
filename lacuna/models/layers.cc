// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/layers.h"

#include <cmath>
#include <utility>

#include "lacuna/core/error.h"

namespace lacuna {

Linear read_linear(WeightReader& reader, const std::string& name, int64_t out, int64_t in,
                   Bias bias) {
  Linear linear;
  Matrix matrix = reader.matrix(name + ".weight", {out, in});
  linear.weight = matrix.stored;
  linear.added = std::move(matrix.added);
  if (bias == Bias::present) linear.bias = reader.f32(name + ".bias", {out});
  return linear;
}

TensorView heads_view(const TensorView& rows, int64_t num_heads, int64_t head_dim) {
  TensorView view = rows;
  view.rank = 3;
  view.shape = {num_heads, rows.shape[0], head_dim};
  view.stride = {head_dim, rows.stride[0], 1};
  return view;
}

void timestep_sinusoid(double timestep, std::span<float> out) {
  LACUNA_CHECK(std::isfinite(timestep), "timestep: {}, expected a finite number", timestep);
  const size_t half = out.size() / 2;
  for (size_t i = 0; i < half; ++i) {
    const double frequency = std::pow(10000.0, -static_cast<double>(i) / static_cast<double>(half));
    out[i] = static_cast<float>(std::cos(timestep * frequency));
    out[half + i] = static_cast<float>(std::sin(timestep * frequency));
  }
}

}  // namespace lacuna
