// SPDX-License-Identifier: Apache-2.0
// Made-up weights that can be saved as one part of a checkpoint in the diffusers layout.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lacuna/core/convert.h"
#include "lacuna/core/safetensors.h"
#include "lacuna/models/weights.h"

namespace lacuna::test {

// Hash weights of whatever a model asks for, noted; matrices in `storage`, all else in f32.
class NotingWeights : public WeightSource {
 public:
  NotingWeights(const std::string& prefix, DType storage)
      : storage_(storage), values_(hash_weights(prefix, DType::f32)) {}
  std::string describe() const override { return "made up"; }
  bool has(std::string_view) const override { return true; }
  std::vector<std::string> names() const override { return {}; }
  std::vector<int64_t> shape(std::string_view) const override { return {}; }
  TensorView load(std::string_view name, std::span<const int64_t> shape) override {
    const TensorView made = values_->load(name, shape);
    Tensor& kept = tensors_[std::string(name)];
    kept = converted(made, shape.size() == 2 ? storage_ : DType::f32);
    return kept;
  }
  // What was asked for, with its config.json, into a new folder.
  void save(const std::filesystem::path& folder, const std::string& config) const {
    std::filesystem::create_directory(folder);
    std::ofstream(folder / "config.json") << config;
    std::vector<std::pair<std::string, TensorView>> tensors;
    for (const auto& [name, tensor] : tensors_) tensors.emplace_back(name, tensor);
    write_safetensors(folder / "diffusion_pytorch_model.safetensors", tensors, {});
  }

 private:
  DType storage_;
  std::unique_ptr<WeightSource> values_;
  std::map<std::string, Tensor> tensors_;
};

}  // namespace lacuna::test
