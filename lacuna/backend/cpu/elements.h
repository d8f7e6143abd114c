// SPDX-License-Identifier: Apache-2.0
// Elements of f32 or bf16 tensors by type and address, for the network and selection operations.
#pragma once

#include "lacuna/core/bf16.h"
#include "lacuna/core/round.h"
#include "lacuna/core/tensor.h"

namespace lacuna::cpu {

inline int64_t element_bytes(DType dtype) {
  return dtype == DType::f32 ? 4 : 2;
}

// Calls f with a typed null pointer, so that a template can be chosen by dtype (f32 or bf16).
template <typename F>
void with_type(DType dtype, F&& f) {
  if (dtype == DType::f32) {
    f(static_cast<float*>(nullptr));
  } else {
    f(static_cast<BFloat16*>(nullptr));
  }
}

// Address of element `offset`.
inline char* at(const TensorView& x, int64_t offset) {
  return static_cast<char*>(x.data) + offset * element_bytes(x.dtype);
}

}  // namespace lacuna::cpu
