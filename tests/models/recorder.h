// SPDX-License-Identifier: Apache-2.0
// A source of weights that notes what a model asks for.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "lacuna/models/weights.h"

namespace lacuna::testing {

// Names and shapes; values are the hash's.
class Recorder : public WeightSource {
 public:
  std::map<std::string, std::vector<int64_t>> asked;

  std::string describe() const override { return "recorder"; }
  bool has(std::string_view) const override { return true; }
  std::vector<std::string> names() const override { return {}; }
  std::vector<int64_t> shape(std::string_view) const override { return {}; }
  TensorView load(std::string_view name, std::span<const int64_t> shape) override {
    asked.emplace(name, std::vector<int64_t>(shape.begin(), shape.end()));
    return values_->load(name, shape);
  }

 private:
  std::unique_ptr<WeightSource> values_ = hash_weights("w:", DType::f32);
};

}  // namespace lacuna::testing
