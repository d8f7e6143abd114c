// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/context.h"

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>

#include "lacuna/core/convert.h"
#include "lacuna/core/error.h"

namespace lacuna {
namespace {

// Kernels read through typed pointers; a tensor inside a mapped file may start at any byte.
bool element_aligned(const TensorView& view) {
  if (is_quantized(view.dtype)) return true;  // read byte by byte
  const auto element = static_cast<uintptr_t>(storage_bytes(view.dtype, 1));
  return reinterpret_cast<uintptr_t>(view.data) % element == 0;
}

TensorView scratch_like(Context& ctx, const TensorView& stored, DType dtype,
                        std::string_view slot) {
  const std::span<const int64_t> shape(stored.shape.data(), static_cast<size_t>(stored.rank));
  const TensorView scratch = ctx.workspace.get(slot, dtype, {stored.numel()});
  TensorView result = make_view(scratch.data, dtype, shape);
  result.device = scratch.device;
  return result;
}

TensorView weight_as(Context& ctx, const TensorView& stored, DType dtype, std::string_view slot,
                     float scale = 1.0f) {
  LACUNA_CHECK(stored.data != nullptr, "weight: {} without memory, expected a loaded tensor",
               stored.describe());
  const bool as_stored = scale == 1.0f && element_aligned(stored);
  if (as_stored && stored.dtype == dtype) return stored;
  const TensorView result = scratch_like(ctx, stored, dtype, slot);
  if (as_stored) {
    ctx.backend.copy(stored, result);
  } else {
    const TensorView decoded = ctx.workspace.mirror("decoded weight", result);
    convert(stored, decoded, scale, "weight");
    ctx.backend.copy(decoded, result);
  }
  return result;
}

// The left operand of a product, which a device keeps no copy of: in its memory, in f32.
TensorView up_of(Context& ctx, const TensorView& stored, std::string_view slot) {
  const TensorView up = weight_as(ctx, stored, DType::f32, slot);
  if (up.device == ctx.backend.device()) return up;
  const TensorView there = scratch_like(ctx, up, DType::f32, slot);
  ctx.backend.copy(up, there);
  return there;
}

// The matrix that x is multiplied by, in x's dtype.
TensorView matrix_of(Context& ctx, const Linear& linear, DType dtype, std::string_view slot) {
  const TensorView& stored = linear.weight;
  if (linear.added.empty()) return weight_as(ctx, stored, dtype, slot, linear.scale);
  LACUNA_CHECK(
      linear.scale == 1.0f && stored.rank == 2 && stored.data != nullptr && element_aligned(stored),
      "linear: weight {} of scale {} with LoRA, expected an aligned matrix of scale 1",
      stored.describe(), linear.scale);
  std::vector<LowRank> added;
  for (size_t i = 0; i < linear.added.size(); ++i) {
    const LowRank& update = linear.added[i];
    added.push_back({up_of(ctx, update.up, fmt::format("lora.up.{}", i)), update.down});
  }
  const TensorView result = scratch_like(ctx, stored, dtype, slot);
  const int64_t n = stored.shape[0], k = stored.shape[1];
  const int64_t rows = std::min(n, std::max<int64_t>(1, kLoraSumElements / k));
  for (int64_t begin = 0; begin < n; begin += rows) {
    const int64_t end = std::min(begin + rows, n);
    const TensorView place = result.slice(begin, end);
    const TensorView sum =
        dtype == DType::f32 ? place : ctx.workspace.get("lora.sum", DType::f32, {end - begin, k});
    ctx.backend.copy(stored.slice(begin, end), sum);
    for (const LowRank& update : added)
      ctx.backend.linear(update.up.slice(begin, end), update.down, nullptr, Epilogue::residual,
                         nullptr, sum);
    if (dtype != DType::f32) ctx.backend.copy(sum, place);
  }
  return result;
}

}  // namespace

TensorView Context::weight(const TensorView& stored, std::string_view slot) {
  return weight_as(*this, stored, compute, slot);
}

TensorView Context::weight(const Linear& linear, std::string_view slot) {
  return matrix_of(*this, linear, compute, slot);
}

ConstantWeights::ConstantWeights(Backend& backend, std::span<const TensorView> weights)
    : backend_(&backend) {
  for (const TensorView& w : weights) {
    backend.constant(w.data, static_cast<size_t>(storage_bytes(w.dtype, w.numel())));
    promised_.push_back(w.data);
  }
}

ConstantWeights::ConstantWeights(ConstantWeights&& other) noexcept
    : backend_(other.backend_), promised_(std::move(other.promised_)) {
  other.promised_.clear();
}

ConstantWeights& ConstantWeights::operator=(ConstantWeights&& other) noexcept {
  std::swap(backend_, other.backend_);
  promised_.swap(other.promised_);
  return *this;
}

ConstantWeights::~ConstantWeights() {
  for (const void* begin : promised_) backend_->forget(begin);
}

void Linear::forward(Context& ctx, const TensorView& x, const TensorView& out, Epilogue epilogue,
                     const float* gate) const {
  LACUNA_CHECK(x.rank == 2 && weight.rank == 2 && out.rank == 2 && x.shape[1] == weight.shape[1] &&
                   out.shape[0] == x.shape[0] && out.shape[1] == weight.shape[0],
               "linear: x {}, weight {}, out {}, expected [m, k], [n, k], [m, n]", x.describe(),
               weight.describe(), out.describe());
  LACUNA_CHECK(bias.empty() || bias.numel() == weight.shape[0],
               "linear: bias {}, expected {} values", bias.view().describe(), weight.shape[0]);
  // x decides, not ctx.compute: some linears (time embedding, head) run in f32 in a bf16 model.
  const TensorView w = matrix_of(ctx, *this, x.dtype, "weight");
  ctx.backend.linear(x, w, bias.empty() ? nullptr : bias.as<float>(), epilogue, gate, out);
}

}  // namespace lacuna
