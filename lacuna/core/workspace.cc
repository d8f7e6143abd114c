// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/workspace.h"

namespace lacuna {

TensorView Workspace::get(std::string_view name, DType dtype,
                          std::initializer_list<int64_t> shape) {
  const TensorView wanted = make_view(nullptr, dtype, shape);
  const int64_t bytes = storage_bytes(dtype, wanted.numel());
  Tensor& buffer = buffers_[std::string(name)];
  if (buffer.empty() || buffer.numel() < bytes) buffer = Tensor(DType::u8, {bytes}, *memory_);
  TensorView view = make_view(buffer.view().data, dtype, shape);
  view.device = memory_->device();
  return view;
}

int64_t Workspace::bytes() const {
  int64_t total = 0;
  for (const auto& [name, buffer] : buffers_) total += buffer.numel();
  return total;
}

}  // namespace lacuna
