// SPDX-License-Identifier: Apache-2.0
// Scratch memory that is allocated in the first step and reused in all later ones.
#pragma once

#include <cstdint>
#include <initializer_list>
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
  int64_t bytes() const;
  void release() { buffers_.clear(); }

 private:
  Memory* memory_;
  std::unordered_map<std::string, Tensor> buffers_;
};

}  // namespace lacuna
