// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/weights.h"

#include <algorithm>
#include <cmath>
#include <unordered_map>
#include <utility>

#include "lacuna/core/bf16.h"
#include "lacuna/core/convert.h"
#include "lacuna/core/error.h"
#include "lacuna/core/rng.h"
#include "lacuna/core/threads.h"

namespace lacuna {
namespace {

std::string_view last_component(std::string_view name) {
  const size_t dot = name.rfind('.');
  return dot == std::string_view::npos ? name : name.substr(dot + 1);
}

// value = offset + amplitude * u.
struct HashRule {
  double offset, amplitude;
};

HashRule hash_rule(std::string_view name, std::span<const int64_t> shape) {
  const std::string_view last = last_component(name);
  if (last == "bias") return {0.0, 0.1};
  if (name.find("scale_shift_table") != std::string_view::npos) return {0.0, 0.5};
  if (shape.size() <= 1 || last == "gamma") return {1.0, 0.1};
  if (name.ends_with("token_embedding.weight") ||
      name.ends_with("pos_embedding.embedding.weight") || name == "pos_frequencies") {
    return {0.0, 1.0};
  }
  double fan_in = 1.0;
  for (size_t i = 1; i < shape.size(); ++i) fan_in *= static_cast<double>(shape[i]);
  return {0.0, std::sqrt(3.0 / fan_in)};
}

Tensor make_hash_tensor(const std::string& hash_name, HashRule rule, DType storage,
                        std::span<const int64_t> shape) {
  Tensor tensor(storage, shape);
  const int64_t n = tensor.numel();
  // Each range passes through a small f32 buffer, so a bf16 model never exists in f32.
  constexpr int64_t kRange = 1 << 14;
  parallel_ranges(n, kRange, [&](int64_t begin, int64_t end) {
    const auto count = static_cast<size_t>(end - begin);
    if (storage == DType::f32) {
      fill_hash(hash_name, rule.offset, rule.amplitude, {tensor.as<float>() + begin, count},
                static_cast<uint64_t>(begin));
      return;
    }
    std::vector<float> values(count);
    fill_hash(hash_name, rule.offset, rule.amplitude, values, static_cast<uint64_t>(begin));
    const int64_t size = end - begin;
    convert(make_view(values.data(), DType::f32, {size}),
            make_view(tensor.as<BFloat16>() + begin, DType::bf16, {size}));
  });
  return tensor;
}

class HashSource : public WeightSource {
 public:
  HashSource(std::string prefix, DType storage) : prefix_(std::move(prefix)), storage_(storage) {
    LACUNA_CHECK(storage == DType::f32 || storage == DType::bf16,
                 "hash weights: storage {}, expected f32 or bf16", dtype_name(storage));
  }

  std::string describe() const override { return "hash " + prefix_; }
  bool has(std::string_view) const override { return true; }
  std::vector<std::string> names() const override { return {}; }
  std::vector<int64_t> shape(std::string_view) const override { return {}; }

  TensorView load(std::string_view name, std::span<const int64_t> shape) override {
    // The same name may be asked for with two shapes (a flat and a folded view): both stay valid.
    std::string key(name);
    for (int64_t d : shape) key += fmt::format("/{}", d);
    auto found = tensors_.find(key);
    if (found == tensors_.end()) {
      Tensor made =
          make_hash_tensor(prefix_ + std::string(name), hash_rule(name, shape), storage_, shape);
      found = tensors_.emplace(std::move(key), std::move(made)).first;
    }
    return found->second;
  }

 private:
  std::string prefix_;
  DType storage_;
  std::unordered_map<std::string, Tensor> tensors_;
};

}  // namespace

std::unique_ptr<WeightSource> hash_weights(std::string prefix, DType storage) {
  return std::make_unique<HashSource>(std::move(prefix), storage);
}

uint64_t fingerprint_of(const TensorMap& tensors) {
  std::string text;
  for (const auto& [name, view] : tensors) {
    text += name;
    for (int i = 0; i < view.rank; ++i) text += fmt::format(",{}", view.shape[i]);
    constexpr int64_t kSampledBytes = 64;
    const int64_t bytes = std::min(kSampledBytes, storage_bytes(view.dtype, view.numel()));
    text.append(static_cast<const char*>(view.data), static_cast<size_t>(bytes));
    text = fmt::format("{:016x}", fnv1a64(text));
  }
  return fnv1a64(text);
}

WeightReader::WeightReader(WeightSource& source,
                           std::function<std::string(std::string_view)> rename)
    : source_(source), rename_(std::move(rename)) {}

bool WeightReader::has(std::string_view name) const {
  return source_.has(rename_ ? rename_(name) : std::string(name));
}

Tensor WeightReader::f32(std::string_view name, std::initializer_list<int64_t> shape) {
  Tensor tensor = passing_f32(name, shape);
  kept_.push_back(tensor);
  return tensor;
}

Tensor WeightReader::passing_f32(std::string_view name, std::initializer_list<int64_t> shape) {
  const TensorView view = find(name, shape);
  if (view.data == nullptr) {
    // All that is missing is told at once, but a config may ask for any number of zeros. The
    // largest of a real model is Wan 2.2's up-convolution, 1024 x 1024 x 9.
    constexpr int64_t kMostZeros = int64_t{1} << 24;
    if (view.numel() > kMostZeros) finish("weights");
    return Tensor::zeros(DType::f32, shape);
  }
  return converted(view, DType::f32, 1.0f, name);
}

TensorView WeightReader::stored(std::string_view name, std::initializer_list<int64_t> shape) {
  const TensorView view = find(name, shape);
  if (view.data != nullptr) kept_.push_back(view);
  return view;
}

ScaledView WeightReader::unscaled(std::string_view name, std::initializer_list<int64_t> shape) {
  const std::string source_name = present(name);
  if (source_name.empty()) return {make_view(nullptr, DType::f32, shape), 1.0f};
  const ScaledView weight =
      source_.load_unscaled(source_name, std::span<const int64_t>(shape.begin(), shape.size()));
  kept_.push_back(weight.stored);
  return weight;
}

Matrix WeightReader::matrix(std::string_view name, std::initializer_list<int64_t> shape) {
  const std::string source_name = present(name);
  if (source_name.empty()) return {make_view(nullptr, DType::f32, shape), {}};
  Matrix matrix =
      source_.load_matrix(source_name, std::span<const int64_t>(shape.begin(), shape.size()));
  kept_.push_back(matrix.stored);
  for (const LowRank& update : matrix.added) {
    kept_.push_back(update.up);
    kept_.push_back(update.down);
  }
  return matrix;
}

std::string WeightReader::present(std::string_view name) {
  std::string source_name = rename_ ? rename_(name) : std::string(name);
  if (source_.has(source_name)) return source_name;
  missing_.push_back(std::move(source_name));
  return {};
}

TensorView WeightReader::find(std::string_view name, std::initializer_list<int64_t> shape) {
  const std::string source_name = present(name);
  if (source_name.empty()) return make_view(nullptr, DType::f32, shape);
  return source_.load(source_name, std::span<const int64_t>(shape.begin(), shape.size()));
}

void WeightReader::finish(std::string_view model) const {
  if (missing_.empty()) return;
  constexpr size_t kShown = 20;
  std::string list;
  for (size_t i = 0; i < std::min(missing_.size(), kShown); ++i) {
    list += (i == 0 ? "" : ", ") + missing_[i];
  }
  if (missing_.size() > kShown) list += fmt::format(", and {} more", missing_.size() - kShown);
  fail("{}: {} lacks {} tensors: {}", model, source_.describe(), missing_.size(), list);
}

}  // namespace lacuna
