// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/context.h"

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

TensorView weight_as(Context& ctx, const TensorView& stored, DType dtype, std::string_view slot,
                     float scale = 1.0f) {
  LACUNA_CHECK(stored.data != nullptr, "weight: {} without memory, expected a loaded tensor",
               stored.describe());
  const bool as_stored = scale == 1.0f && element_aligned(stored);
  if (as_stored && stored.dtype == dtype) return stored;
  const std::span<const int64_t> shape(stored.shape.data(), static_cast<size_t>(stored.rank));
  const TensorView scratch = ctx.workspace.get(slot, dtype, {stored.numel()});
  TensorView result = make_view(scratch.data, dtype, shape);
  result.device = scratch.device;
  if (as_stored) {
    ctx.backend.copy(stored, result);
  } else {
    const TensorView decoded = ctx.workspace.mirror("decoded weight", result);
    convert(stored, decoded, scale, "weight");
    ctx.backend.copy(decoded, result);
  }
  return result;
}

}  // namespace

TensorView Context::weight(const TensorView& stored, std::string_view slot) {
  return weight_as(*this, stored, compute, slot);
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
  const TensorView w = weight_as(ctx, weight, x.dtype, "weight", scale);
  ctx.backend.linear(x, w, bias.empty() ? nullptr : bias.as<float>(), epilogue, gate, out);
}

}  // namespace lacuna
