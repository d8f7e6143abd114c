// SPDX-License-Identifier: Apache-2.0
// Shared by the tests of the Wan transformer.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "lacuna/backend/backend.h"
#include "lacuna/core/error.h"
#include "lacuna/core/rng.h"
#include "lacuna/core/tensor.h"
#include "lacuna/models/wan/dit.h"
#include "lacuna/models/wan/names.h"
#include "lacuna/models/weights.h"
#include "tests/models/recorder.h"
#include "tests/support/error_of.h"

namespace lacuna::testing {

using test::error_of;

// Numbers that the upstream module gave in f32.
struct Golden {
  std::string tag;
  double rms, probe;
  std::vector<std::pair<int64_t, double>> values;  // index, value
};

inline void expect_golden(const TensorView& result, const Golden& golden) {
  SCOPED_TRACE(golden.tag);
  const float* y = result.as<float>();
  const int64_t n = result.numel();
  double squares = 0.0, probe = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    squares += static_cast<double>(y[i]) * y[i];
    probe += y[i] * hash_uniform("probe:" + golden.tag, static_cast<uint64_t>(i));
  }
  const double count = static_cast<double>(n);
  EXPECT_NEAR(std::sqrt(squares / count), golden.rms, 1e-5 * golden.rms);
  EXPECT_NEAR(probe, golden.probe, 2e-5 * golden.rms * std::sqrt(count));
  for (const auto& [index, value] : golden.values) {
    ASSERT_LT(index, n);
    EXPECT_NEAR(y[index], value, 2e-5 * (1.0 + std::abs(value))) << "element " << index;
  }
}

// A checkpoint file as far as names and shapes go; values come from the hash of the diffusers name.
class FakeFile : public WeightSource {
 public:
  std::map<std::string, std::vector<int64_t>> shapes;  // as named in the file
  std::map<std::string, std::string> diffusers;        // file name -> hash name
  std::unique_ptr<WeightSource> values = hash_weights("w:", DType::f32);

  std::string describe() const override { return "fake.safetensors"; }
  bool has(std::string_view name) const override { return shapes.contains(std::string(name)); }
  std::vector<std::string> names() const override {
    std::vector<std::string> result;
    for (const auto& [name, shape] : shapes) result.push_back(name);
    return result;
  }
  TensorView load(std::string_view name, std::span<const int64_t> shape) override {
    const std::vector<int64_t>& stored = shapes.at(std::string(name));
    LACUNA_CHECK(std::equal(stored.begin(), stored.end(), shape.begin(), shape.end()),
                 "fake.safetensors: {} of another shape", name);
    return values->load(diffusers.at(std::string(name)), shape);
  }
  std::vector<int64_t> shape(std::string_view name) const override {
    return shapes.at(std::string(name));
  }
};

inline std::map<std::string, std::vector<int64_t>> tensors_of(const WanConfig& config) {
  Recorder recorder;
  WeightReader reader(recorder);
  const WanDit dit(config, reader);
  return recorder.asked;
}

// The network of `config` written to a file in one of the two naming schemes.
inline FakeFile make_file(const WanConfig& config, const WanNames& names) {
  FakeFile file;
  const auto rename = wan_rename(names);
  for (const auto& [name, shape] : tensors_of(config)) {
    const std::string in_file = rename(name);
    file.shapes[in_file] = shape;
    file.diffusers[in_file] = name;
  }
  return file;
}

}  // namespace lacuna::testing
