// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/workspace.h"

namespace lacuna {

TensorView Workspace::take(std::string_view name, DType dtype, std::span<const int64_t> shape,
                           Memory& memory) {
  TensorView view = make_view(nullptr, dtype, shape);
  const int64_t bytes = storage_bytes(dtype, view.numel());
  Tensor& buffer = buffers_[std::string(name)];
  const bool fits =
      !buffer.empty() && buffer.numel() >= bytes && buffer.view().device == memory.device();
  if (!fits) {
    buffer = Tensor();  // before the larger one comes: the two would be held at once
    buffer = Tensor(DType::u8, {bytes}, memory);
  }
  view.data = buffer.view().data;
  view.device = memory.device();
  return view;
}

TensorView Workspace::get(std::string_view name, DType dtype,
                          std::initializer_list<int64_t> shape) {
  return take(name, dtype, {shape.begin(), shape.size()}, *memory_);
}

TensorView Workspace::host(std::string_view name, DType dtype,
                           std::initializer_list<int64_t> shape) {
  return take(name, dtype, {shape.begin(), shape.size()}, host_memory());
}

TensorView Workspace::mirror(std::string_view name, const TensorView& view) {
  if (view.device == Device::cpu) return view;
  return take(name, view.dtype, {view.shape.data(), static_cast<size_t>(view.rank)}, host_memory());
}

int64_t Workspace::bytes() const {
  int64_t total = 0;
  for (const auto& [name, buffer] : buffers_) total += buffer.numel();
  return total;
}

}  // namespace lacuna
