// SPDX-License-Identifier: Apache-2.0
// What every forward pass needs besides its weights.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "lacuna/backend/backend.h"
#include "lacuna/core/error.h"
#include "lacuna/core/team.h"
#include "lacuna/core/tensor.h"
#include "lacuna/core/workspace.h"
#include "lacuna/models/weights.h"

namespace lacuna {

// Thrown out of a forward pass when Context::cancel is set.
class Cancelled : public Error {
 public:
  Cancelled() : Error("cancelled") {}
};

// Elements of a matrix with LoRA that are summed at one time, in f32: few enough to be in a cache
// still when they are rounded.
inline constexpr int64_t kLoraSumElements = int64_t{1} << 20;

struct Linear;

struct Context {
  explicit Context(Backend& with, DType dtype = DType::f32, const std::atomic<bool>* stop = nullptr)
      : backend(with), compute(dtype), workspace(with), cancel(stop) {}

  Backend& backend;
  DType compute;        // f32 or bf16: dtype of activations entering linears and attention
  Workspace workspace;  // of the backend's memory
  const std::atomic<bool>* cancel;  // looked at between layers; null = never cancelled
  Team* team = nullptr;             // whose ranks share the tokens of a forward; null = alone

  // Throws Cancelled if asked to stop.
  void check_cancel() const {
    if (cancel != nullptr && cancel->load(std::memory_order_relaxed)) throw Cancelled();
  }
  // The matrix in the compute dtype: `stored` itself when it already is, else widened or rounded
  // into a scratch buffer named `slot` that the next call with the same slot overwrites. So memory
  // never exceeds the stored weights plus one matrix. For ops only: the buffer is the backend's.
  TensorView weight(const TensorView& stored, std::string_view slot = "weight");
  // The same of a linear layer, with its scale and what LoRA adds.
  TensorView weight(const Linear& linear, std::string_view slot);
};

// Promises a backend that weights do not change while this lives (Backend::constant).
class ConstantWeights {
 public:
  // The backend and the memory of the weights must outlive this.
  ConstantWeights(Backend& backend, std::span<const TensorView> weights);
  ~ConstantWeights();
  ConstantWeights(ConstantWeights&& other) noexcept;
  ConstantWeights& operator=(ConstantWeights&& other) noexcept;

 private:
  Backend* backend_;
  std::vector<const void*> promised_;
};

// y = x w^T + b with its weight as stored.
struct Linear {
  TensorView weight;   // [n, k], any DType
  Tensor bias;         // [n] f32, or empty
  float scale = 1.0f;  // of the weight: applied where it becomes the matrix that x is multiplied by
  std::vector<LowRank> added{};  // the same; f32 sums, rounded once. Takes no scale beside it
  int64_t out_features() const { return weight.shape[0]; }
  int64_t in_features() const { return weight.shape[1]; }
  void forward(Context& ctx, const TensorView& x, const TensorView& out,
               Epilogue epilogue = Epilogue::none, const float* gate = nullptr) const;
};

}  // namespace lacuna
