// SPDX-License-Identifier: Apache-2.0
// Arguments of an op as kernels need them: device pointers and strides. What lies in device memory
// is used in place; what lies on the host is copied, and copied back.
#pragma once

#include <array>
#include <optional>
#include <span>
#include <vector>

#include "lacuna/backend/cuda/device.h"
#include "lacuna/core/tensor.h"

namespace lacuna::cuda {

inline bool is_bf16(const TensorView& x) {
  return x.dtype == DType::bf16;
}

// Strides are in elements. A host tensor lies packed on the device; dimensions of stride 0 stay so.
// `only`: indices of dimension 0 that are copied, all if empty.
class Operand {
 public:
  Operand(const Operand&) = delete;
  Operand& operator=(const Operand&) = delete;

  void* data() const { return data_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  int64_t stride(int dimension) const { return stride_[static_cast<size_t>(dimension)]; }
  bool resident() const { return !memory_.has_value(); }

 protected:
  Operand(Device& device, const TensorView& view, std::span<const int32_t> only);
  ~Operand() = default;
  void upload();
  void download();

 private:
  // Calls f(packed offset, host offset, elements) for rows of contiguous elements.
  template <typename F>
  void for_rows(const F& f) const;

  Device& device_;
  TensorView view_;
  std::vector<bool> wanted_;                          // of dimension 0; empty = all
  std::array<int64_t, kMaxRank> shape_{}, stride_{};  // of the packed copy
  int64_t elements_ = 0;                              // of the packed copy
  void* data_ = nullptr;
  std::optional<DeviceMemory> memory_;
};

class Input : public Operand {
 public:
  Input(Device& device, const TensorView& view, std::span<const int32_t> only = {})
      : Operand(device, view, only) {
    upload();
  }
};

// store() brings a host tensor its values; without it nothing changes there.
class Output : public Operand {
 public:
  Output(Device& device, const TensorView& view, std::span<const int32_t> only = {})
      : Operand(device, view, only) {}
  void store() { download(); }
};

// Read and written.
class InOut : public Operand {
 public:
  InOut(Device& device, const TensorView& view, std::span<const int32_t> only = {})
      : Operand(device, view, only) {
    upload();
  }
  void store() { download(); }
};

// n values: a copy of host memory, or device memory in place. Null stays null.
template <typename T>
class Vector {
 public:
  Vector(Device& device, const T* values, int64_t n) : data_(values) {
    if (values == nullptr || n == 0 || device.owns(values)) return;
    const auto bytes = static_cast<size_t>(n) * sizeof(T);
    memory_.emplace(device, bytes);
    device.upload(memory_->template as<void>(), values, bytes);
    data_ = memory_->template as<T>();
  }
  const T* data() const { return data_; }

 private:
  const T* data_;
  std::optional<DeviceMemory> memory_;
};

}  // namespace lacuna::cuda
