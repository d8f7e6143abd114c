// SPDX-License-Identifier: Apache-2.0
// Scratch memory that is allocated in the first step and reused in all later ones.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>

#include "lacuna/core/tensor.h"

namespace lacuna {

// Named buffers that only grow. A view stays valid until the same name is asked for again.
class Workspace {
 public:
  // `memory` must outlive the workspace.
  explicit Workspace(Memory& memory = host_memory()) : memory_(&memory) {}
  TensorView get(std::string_view name, DType dtype, std::initializer_list<int64_t> shape);
  // The same in host memory, for what host code reads or writes.
  TensorView host(std::string_view name, DType dtype, std::initializer_list<int64_t> shape);
  // `view` itself where host code can reach it, else a buffer of its shape in host memory: with a
  // Backend::copy before or behind (of a view to itself: nothing), host code works on any view.
  TensorView mirror(std::string_view name, const TensorView& view);
  int64_t bytes() const;
  void release() { buffers_.clear(); }

 private:
  TensorView take(std::string_view name, DType dtype, std::span<const int64_t> shape,
                  Memory& memory);
  Memory* memory_;
  std::unordered_map<std::string, Tensor> buffers_;
};

}  // namespace lacuna
