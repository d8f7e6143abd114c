// SPDX-License-Identifier: Apache-2.0
// What tests of the text encoders share.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lacuna/backend/backend.h"
#include "lacuna/core/error.h"
#include "lacuna/core/rng.h"
#include "lacuna/models/weights.h"

namespace lacuna::test {

// Tensors in memory under any names, so that naming schemes and shapes can be tested.
class MapSource : public WeightSource {
 public:
  std::string describe() const override { return "map"; }
  bool has(std::string_view name) const override { return tensors_.contains(std::string(name)); }
  std::vector<std::string> names() const override {
    std::vector<std::string> out;
    for (const auto& [name, tensor] : tensors_) out.push_back(name);
    return out;
  }
  TensorView load(std::string_view name, std::span<const int64_t> shape) override {
    const TensorView& view = tensors_.at(std::string(name));
    LACUNA_CHECK(std::equal(shape.begin(), shape.end(), view.shape.begin()) &&
                     view.rank == static_cast<int>(shape.size()),
                 "map: {} is {}", name, view.describe());
    return view;
  }
  std::vector<int64_t> shape(std::string_view name) const override {
    const TensorView& view = tensors_.at(std::string(name)).view();
    return {view.shape.begin(), view.shape.begin() + view.rank};
  }
  void put(const std::string& name, Tensor tensor) { tensors_[name] = std::move(tensor); }
  void erase(const std::string& name) { tensors_.erase(name); }

 private:
  std::map<std::string, Tensor> tensors_;
};

inline bool has_backend(std::string_view name) {
  return std::ranges::find(backend_names(), name) != backend_names().end();
}

// Ids as the golden cases make them: trunc(|u| * below).
inline std::vector<int32_t> hash_ids(std::string_view name, size_t count, double below) {
  std::vector<int32_t> ids;
  for (uint64_t k = 0; k < count; ++k)
    ids.push_back(static_cast<int32_t>(std::fabs(hash_uniform(name, k)) * below));
  return ids;
}

// Numbers of a case that the reference implementation printed (docs/formats.md, "Numbers").
struct Golden {
  std::string tag;
  int64_t values;
  double rms, probe;
  std::initializer_list<std::pair<int64_t, double>> elements;
};

inline void expect_golden(const Tensor& y, const Golden& golden) {
  ASSERT_EQ(y.numel(), golden.values);
  const float* p = y.as<float>();
  double squares = 0.0, probe = 0.0;
  for (int64_t i = 0; i < y.numel(); ++i) {
    squares += double{p[i]} * p[i];
    probe += p[i] * hash_uniform("probe:" + golden.tag, static_cast<uint64_t>(i));
  }
  const double n = static_cast<double>(y.numel()), rms = std::sqrt(squares / n);
  EXPECT_NEAR(rms, golden.rms, 1e-5 * golden.rms);
  EXPECT_NEAR(probe, golden.probe, 2e-5 * rms * std::sqrt(n));
  for (const auto& [index, value] : golden.elements)
    EXPECT_NEAR(p[index], value, 2e-5 * (1.0 + std::fabs(value))) << index;
}

}  // namespace lacuna::test
