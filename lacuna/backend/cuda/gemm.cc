// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cuda/gemm.h"

#include <algorithm>
#include <optional>

#include "lacuna/backend/cuda/copy.h"
#include "lacuna/backend/cuda/walk.h"
#include "lacuna/core/tensor.h"

namespace lacuna::cuda {
namespace {

TensorView rows_view(const void* data, bool bf16, int64_t rows, int64_t channels, int64_t stride) {
  TensorView view =
      make_view(const_cast<void*>(data), bf16 ? DType::bf16 : DType::f32, {rows, channels});
  view.stride[0] = stride;
  view.device = lacuna::Device::cuda;
  return view;
}

const void* offset(const void* base, bool bf16, int64_t elements) {
  return base == nullptr ? nullptr : static_cast<const char*>(base) + elements * (bf16 ? 2 : 4);
}

Gemm rows_of(const Gemm& g, int32_t begin, int32_t count) {
  Gemm part = g;
  part.m = count;
  part.x = offset(g.x, g.bf16, begin * g.x_stride);
  part.out = const_cast<void*>(offset(g.out, g.out_bf16, begin * g.out_stride));
  part.base = offset(g.base, g.out_bf16, begin * g.base_stride);
  return part;
}

// As Device::gemm asks, but for the type of the bias.
bool library_can(const Gemm& g) {
  const bool types = g.bf16 || !g.out_bf16;
  // How exact its tanh is, nobody says: enough for bf16, perhaps not for f32.
  const bool end = g.activation == Activation::none || (g.activation == Activation::gelu_tanh &&
                                                        g.base == nullptr && !g.relu && g.out_bf16);
  return types && end && g.gate == nullptr && g.k > 0;
}

bool by_library(Device& device, const Gemm& g) {
  if (g.bias == nullptr || !g.out_bf16) return device.gemm(g);
  const DeviceMemory bias(device, static_cast<size_t>(g.n) * 2);
  copy(device, rows_view(g.bias, false, 1, g.n, g.n),
       rows_view(bias.as<void>(), true, 1, g.n, g.n));
  Gemm rounded = g;
  rounded.bias = bias.as<void>();
  rounded.bias_bf16 = true;
  return device.gemm(rounded);
}

// The product by the library, some rows at a time, the rest by a kernel after it.
bool by_parts(Device& device, const Gemm& g, int64_t part_bytes) {
  if (g.k == 0) return false;
  const int64_t quads = (g.n + 3) / 4;  // of a row: aligned whatever n is
  const auto most = static_cast<int32_t>(
      std::clamp<int64_t>(part_bytes / (quads * 16) / kGemmTile * kGemmTile, kGemmTile,
                          (g.m + kGemmTile - 1) / kGemmTile * kGemmTile));
  const int32_t rows = std::min(most, g.m);
  const DeviceMemory product(device, static_cast<size_t>(rows * quads * 16));
  for (int32_t begin = 0; begin < g.m; begin += rows) {
    FinishArgs finish{};
    finish.gemm = rows_of(g, begin, std::min(rows, g.m - begin));
    finish.product = product.as<float>();
    Gemm plain = finish.gemm;
    plain.out = product.as<void>();
    plain.out_stride = quads * 4;
    plain.out_bf16 = false;
    plain.base = nullptr, plain.bias = nullptr, plain.gate = nullptr;
    plain.activation = Activation::none, plain.relu = false;
    // A refusal depends on the shape: only the first part has the choice.
    if (!device.gemm(plain)) {
      if (begin > 0) own_gemm(device, rows_of(g, begin, g.m - begin));
      return begin > 0;
    }
    finish.vector = whole_quads(g.out, g.out_bf16, g.out_stride);
    device.launch("network", "gemm_finish",
                  {.blocks = walk_blocks(finish.gemm.m * quads), .threads = kWalkThreads}, finish);
  }
  return true;
}

// An operand as cp.async wants it: rows on multiples of 16 bytes.
class Aligned {
 public:
  Aligned(Device& device, const void* data, bool bf16, int64_t rows, int64_t k, int64_t* stride)
      : data_(data) {
    const int64_t unit = bf16 ? 8 : 4;
    if (reinterpret_cast<uintptr_t>(data) % 16 == 0 && (rows <= 1 || *stride % unit == 0)) return;
    const int64_t padded = (k + unit - 1) / unit * unit;
    memory_.emplace(device, static_cast<size_t>(rows * padded) * (bf16 ? 2 : 4));
    copy(device, rows_view(data, bf16, rows, k, *stride),
         rows_view(memory_->as<void>(), bf16, rows, k, padded));
    data_ = memory_->as<void>();
    *stride = padded;
  }
  const void* data() const { return data_; }

 private:
  const void* data_;
  std::optional<DeviceMemory> memory_;
};

}  // namespace

void gemm(Device& device, const Gemm& g, int64_t part_bytes) {
  if (g.m == 0 || g.n == 0) return;
  if (library_can(g) ? by_library(device, g) : by_parts(device, g, part_bytes)) return;
  own_gemm(device, g);
}

void own_gemm(Device& device, const Gemm& g) {
  if (g.m == 0 || g.n == 0) return;
  Gemm args = g;
  const Aligned x(device, g.x, g.bf16, g.m, g.k, &args.x_stride);
  const Aligned w(device, g.w, g.bf16, g.n, g.k, &args.w_stride);
  args.x = x.data(), args.w = w.data();
  const auto tiles = [](int32_t size) { return (size + kGemmTile - 1) / kGemmTile; };
  device.launch("network", g.bf16 ? "gemm_bf16" : "gemm_f32",
                {.blocks = tiles(g.m) * tiles(g.n),
                 .threads = kGemmThreads,
                 .shared_bytes = g.bf16 ? kGemmSharedBytes : kGemmSharedBytesF32},
                args);
}

}  // namespace lacuna::cuda
