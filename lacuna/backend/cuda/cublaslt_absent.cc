// SPDX-License-Identifier: Apache-2.0
// In place of cublaslt.cc where the toolkit has no cublasLt.h.
#include "lacuna/backend/cuda/cublaslt.h"

namespace lacuna::cuda {

std::unique_ptr<MatrixLibrary> open_matrix_library(void*, std::string* why) {
  *why = "built without cublasLt.h";
  return nullptr;
}

}  // namespace lacuna::cuda
