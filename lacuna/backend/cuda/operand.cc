// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cuda/operand.h"

#include <cstring>

#include "lacuna/core/error.h"

namespace lacuna::cuda {

Operand::Operand(Device& device, const TensorView& view, std::span<const int32_t> only)
    : device_(device), view_(view), shape_(view.shape), stride_(view.stride), data_(view.data) {
  if (view.empty() || view.device == lacuna::Device::cuda || device.owns(view.data)) return;
  LACUNA_CHECK(!is_quantized(view.dtype), "cuda: {}, expected plain elements", view.describe());
  elements_ = 1;
  for (int i = view.rank - 1; i >= 0; --i) {
    const auto at = static_cast<size_t>(i);
    if (view.stride[at] == 0) shape_[at] = 1;
    stride_[at] = view.stride[at] == 0 ? 0 : elements_;
    elements_ *= shape_[at];
  }
  if (!only.empty() && view.stride[0] != 0) {
    wanted_.resize(static_cast<size_t>(shape_[0]));
    for (int32_t i : only) wanted_[static_cast<size_t>(i)] = true;
  }
  memory_.emplace(device, static_cast<size_t>(storage_bytes(view.dtype, elements_)));
  data_ = memory_->as<void>();
}

template <typename F>
void Operand::for_rows(const F& f) const {
  // The longest run of trailing dimensions that lie contiguous is a row.
  int outer = view_.rank;
  int64_t row = 1;
  while (outer > (wanted_.empty() ? 0 : 1)) {
    const auto at = static_cast<size_t>(outer - 1);
    if (shape_[at] != 1 && view_.stride[at] != row) break;
    row *= shape_[at];
    --outer;
  }
  std::array<int64_t, kMaxRank> index{};
  for (int64_t packed = 0; packed < elements_; packed += row) {
    int64_t offset = 0;
    for (int i = 0; i < outer; ++i)
      offset += index[static_cast<size_t>(i)] * view_.stride[static_cast<size_t>(i)];
    if (wanted_.empty() || wanted_[static_cast<size_t>(index[0])]) f(packed, offset, row);
    for (int i = outer - 1; i >= 0; --i) {
      if (++index[static_cast<size_t>(i)] < shape_[static_cast<size_t>(i)]) break;
      index[static_cast<size_t>(i)] = 0;
    }
  }
}

void Operand::upload() {
  if (resident()) return;
  const auto size = static_cast<size_t>(storage_bytes(view_.dtype, 1));
  const auto* host = static_cast<const unsigned char*>(view_.data);
  const auto bytes = static_cast<size_t>(elements_) * size;
  std::vector<unsigned char> packed;
  for_rows([&](int64_t at, int64_t from, int64_t count) {
    if (count == elements_) return device_.upload(data_, host, bytes);
    if (packed.empty()) packed.resize(bytes);
    std::memcpy(packed.data() + static_cast<size_t>(at) * size,
                host + from * static_cast<int64_t>(size), static_cast<size_t>(count) * size);
  });
  if (!packed.empty()) device_.upload(data_, packed.data(), bytes);
}

void Operand::download() {
  if (resident()) return;
  const auto size = static_cast<size_t>(storage_bytes(view_.dtype, 1));
  auto* host = static_cast<unsigned char*>(view_.data);
  const auto bytes = static_cast<size_t>(elements_) * size;
  std::vector<unsigned char> packed;
  for_rows([&](int64_t at, int64_t to, int64_t count) {
    if (count == elements_) return device_.download(host, data_, bytes);
    if (packed.empty()) {
      packed.resize(bytes);
      device_.download(packed.data(), data_, bytes);
    }
    std::memcpy(host + to * static_cast<int64_t>(size),
                packed.data() + static_cast<size_t>(at) * size, static_cast<size_t>(count) * size);
  });
}

}  // namespace lacuna::cuda
