// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cuda/emulator/library.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "lacuna/core/bf16.h"
#include "lacuna/core/error.h"

namespace lacuna::cuda::emulator {
namespace {

float element(const void* base, bool bf16, int64_t i) {
  return bf16 ? static_cast<float>(static_cast<const BFloat16*>(base)[i])
              : static_cast<const float*>(base)[i];
}

bool whole(const void* base, bool bf16, int64_t stride) {
  return base == nullptr ||
         (reinterpret_cast<uintptr_t>(base) % 16 == 0 && stride * (bf16 ? 2 : 4) % 16 == 0);
}

void check_asked(const Gemm& g) {
  LACUNA_CHECK(g.gate == nullptr && g.k > 0 && (g.bf16 || !g.out_bf16) &&
                   (g.bias == nullptr || g.bias_bf16 == g.out_bf16) &&
                   (g.activation == Activation::none ||
                    (g.activation == Activation::gelu_tanh && g.base == nullptr && !g.relu)),
               "emulator: a product that no library can finish");
}

void finish(const Gemm& g, int64_t i, int64_t j, float sum) {
  if (g.base != nullptr) sum += element(g.base, g.out_bf16, i * g.base_stride + j);
  if (g.bias != nullptr) sum += element(g.bias, g.bias_bf16, j);
  if (g.activation == Activation::gelu_tanh)
    sum = 0.5f * sum * (1.0f + std::tanh(0.79788456f * (sum + 0.044715f * sum * sum * sum)));
  if (g.relu) sum = std::max(sum, 0.0f);
  if (g.out_bf16) {
    static_cast<BFloat16*>(g.out)[i * g.out_stride + j] = BFloat16(sum);
  } else {
    static_cast<float*>(g.out)[i * g.out_stride + j] = sum;
  }
}

}  // namespace

bool library_gemm(const Gemm& g) {
  check_asked(g);
  if (!whole(g.x, g.bf16, g.x_stride) || !whole(g.w, g.bf16, g.w_stride) ||
      !whole(g.out, g.out_bf16, g.out_stride) || !whole(g.base, g.out_bf16, g.base_stride))
    return false;
  // Weights by their columns: the innermost loop goes over a row of the result.
  std::vector<float> columns(static_cast<size_t>(int64_t{g.k} * g.n)),
      row(static_cast<size_t>(g.n));
  for (int64_t j = 0; j < g.n; ++j)
    for (int64_t c = 0; c < g.k; ++c)
      columns[static_cast<size_t>(c * g.n + j)] = element(g.w, g.bf16, j * g.w_stride + c);
  for (int64_t i = 0; i < g.m; ++i) {
    std::fill(row.begin(), row.end(), 0.0f);
    for (int64_t c = 0; c < g.k; ++c) {
      const float x = element(g.x, g.bf16, i * g.x_stride + c);
      const float* w = columns.data() + c * g.n;
      for (int64_t j = 0; j < g.n; ++j) row[static_cast<size_t>(j)] += x * w[j];
    }
    for (int64_t j = 0; j < g.n; ++j) finish(g, i, j, row[static_cast<size_t>(j)]);
  }
  return true;
}

}  // namespace lacuna::cuda::emulator
