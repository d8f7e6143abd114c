// SPDX-License-Identifier: Apache-2.0
// cuBLASLt, opened at run time like the driver: the fast path of matrix products.
#pragma once

#include <memory>
#include <string>

#include "lacuna/backend/cuda/device.h"

namespace lacuna::cuda {

class MatrixLibrary {
 public:
  virtual ~MatrixLibrary() = default;
  virtual std::string name() const = 0;  // "cuBLASLt 13.1.0"
  // Device::gemm on a stream (CUstream) of the current context.
  virtual bool gemm(const Gemm& g, void* stream) = 0;
};

// `workspace`: kMatrixWorkspaceBytes of device memory that stay for as long as the library. Null
// and the reason where there is none: built without its header, or not installed.
inline constexpr size_t kMatrixWorkspaceBytes = size_t{32} << 20;
std::unique_ptr<MatrixLibrary> open_matrix_library(void* workspace, std::string* why);

}  // namespace lacuna::cuda
