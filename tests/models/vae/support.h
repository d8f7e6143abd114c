// SPDX-License-Identifier: Apache-2.0
// Shared by the tests of the autoencoders.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <numbers>
#include <string>
#include <vector>

#include "lacuna/backend/backend.h"
#include "lacuna/core/error.h"
#include "lacuna/core/metrics.h"
#include "lacuna/core/rng.h"
#include "lacuna/core/tensor.h"
#include "lacuna/models/vae/video_decoder.h"
#include "lacuna/models/weights.h"
#include "tests/models/recorder.h"
#include "tests/support/error_of.h"

namespace lacuna::testing {

using test::error_of;

inline bool has_backend(std::string_view name) {
  const auto names = backend_names();
  return std::find(names.begin(), names.end(), name) != names.end();
}

// The fastest backend that this build has.
inline std::unique_ptr<Backend> quick_backend() {
  return make_backend(has_backend("cpu") ? "cpu" : "ref");
}

inline Tensor hash_tensor(const std::string& name, std::initializer_list<int64_t> shape,
                          double amplitude = std::numbers::sqrt3) {
  Tensor tensor(DType::f32, shape);
  fill_hash(name, 0.0, amplitude, {tensor.as<float>(), static_cast<size_t>(tensor.numel())});
  return tensor;
}

// Largest |a - b| / (1 + |b|).
inline double worst_error(const TensorView& a, const TensorView& b) {
  EXPECT_EQ(a.describe(), b.describe());
  if (a.numel() != b.numel()) return 1e30;
  double worst = 0.0;
  for (int64_t i = 0; i < a.numel(); ++i) {
    const double x = a.as<float>()[i], y = b.as<float>()[i];
    const double error = std::abs(x - y) / (1.0 + std::abs(y));
    worst = error <= worst ? worst : error;  // a NaN wins
  }
  return worst;
}

// Tensors held in memory under the names of a file.
class MemorySource : public WeightSource {
 public:
  std::map<std::string, Tensor, std::less<>> tensors;

  std::string describe() const override { return "memory"; }
  bool has(std::string_view name) const override { return tensors.contains(name); }
  std::vector<std::string> names() const override {
    std::vector<std::string> result;
    for (const auto& [name, tensor] : tensors) result.push_back(name);
    return result;
  }
  TensorView load(std::string_view name, std::span<const int64_t> shape) override {
    const TensorView& view = tensors.find(name)->second.view();
    LACUNA_CHECK(
        std::equal(shape.begin(), shape.end(), view.shape.begin(), view.shape.begin() + view.rank),
        "memory: {} is {}, expected another shape", name, view.describe());
    return view;
  }
  std::vector<int64_t> shape(std::string_view name) const override {
    const TensorView& view = tensors.find(name)->second.view();
    return {view.shape.begin(), view.shape.begin() + view.rank};
  }
};

}  // namespace lacuna::testing
