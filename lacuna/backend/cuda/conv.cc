// SPDX-License-Identifier: Apache-2.0
// Convolution as a matrix product: patches of the input, a bounded number at a time, times weights
// laid out like them.
#include <algorithm>
#include <optional>

#include "lacuna/backend/cuda/copy.h"
#include "lacuna/backend/cuda/gemm.h"
#include "lacuna/backend/cuda/network.h"
#include "lacuna/backend/cuda/operand.h"
#include "lacuna/backend/cuda/walk.h"
#include "lacuna/backend/network_check.h"

namespace lacuna::cuda {
namespace {

TensorView on_device(void* data, DType dtype, std::initializer_list<int64_t> shape) {
  TensorView view = make_view(data, dtype, shape);
  view.device = lacuna::Device::cuda;
  return view;
}

// [c_out, c_in, taps] -> [c_out, row]: taps of channels, then zeros.
void arrange_weights(Device& device, const TensorView& w, int64_t row, const void* stored,
                     void* to) {
  const int64_t c_out = w.shape[0], c_in = w.shape[1];
  const int64_t taps = w.shape[2] * w.shape[3] * w.shape[4];
  TensorView from = on_device(const_cast<void*>(stored), w.dtype, {c_out, taps, c_in});
  from.stride[0] = c_in * taps, from.stride[1] = 1, from.stride[2] = taps;
  TensorView rows = on_device(to, w.dtype, {c_out, taps, c_in});
  rows.stride[0] = row;
  copy(device, from, rows);
  const int64_t rest = row - taps * c_in;
  if (rest == 0) return;
  // Zeros, since nothing times what memory held before would do.
  const Tensor zeros = Tensor::zeros(w.dtype, {1, 1});
  const DeviceMemory zero(device, 4);
  device.upload(zero.as<void>(), zeros.view().data, static_cast<size_t>(storage_bytes(w.dtype, 1)));
  TensorView repeated = on_device(zero.as<void>(), w.dtype, {c_out, rest});
  repeated.stride[0] = repeated.stride[1] = 0;
  TensorView end = on_device(static_cast<char*>(to) + storage_bytes(w.dtype, taps * c_in), w.dtype,
                             {c_out, rest});
  end.stride[0] = row;
  copy(device, repeated, end);
}

PatchArgs patch_args(const TensorView& x, const TensorView& w, const ConvParams& conv,
                     const TensorView& out) {
  const auto narrow = [](int64_t n) { return static_cast<int32_t>(n); };
  PatchArgs p{};
  p.h = narrow(x.shape[1]), p.w = narrow(x.shape[2]), p.c = narrow(x.shape[3]);
  p.kt = narrow(w.shape[2]), p.kh = narrow(w.shape[3]), p.kw = narrow(w.shape[4]);
  p.stride_t = conv.stride_t, p.stride_h = conv.stride_h, p.stride_w = conv.stride_w;
  p.pad_top = conv.pad_top, p.pad_left = conv.pad_left;
  p.out_h = narrow(out.shape[1]), p.out_w = narrow(out.shape[2]);
  return p;
}

// The input is the matrix already.
bool one_tap(const TensorView& x, const TensorView& w, const ConvParams& conv,
             const TensorView& out) {
  return w.shape[2] * w.shape[3] * w.shape[4] == 1 && conv.pad_top == 0 && conv.pad_left == 0 &&
         x.shape[0] == out.shape[0] && x.shape[1] == out.shape[1] && x.shape[2] == out.shape[2];
}

}  // namespace

void conv3d(Device& device, Resident& weights, const TensorView& x, const TensorView& w,
            const float* bias, const ConvParams& conv, const TensorView* residual,
            const TensorView& out, int64_t patch_bytes) {
  check_conv3d(Reach::anywhere, x, w, conv, residual, out);
  if (out.numel() == 0) return;
  const int64_t positions = out.numel() / w.shape[0];
  LACUNA_CHECK(positions < INT32_MAX && w.numel() < INT32_MAX,
               "conv3d: {} positions, {} on cuda, expected below 2^31", positions, w.describe());
  const int64_t size = storage_bytes(x.dtype, 1), unit = 16 / size;
  const bool direct = one_tap(x, w, conv, out);
  const int64_t taken = w.numel() / w.shape[0];
  const int64_t row = direct ? taken : (taken + unit - 1) / unit * unit;
  const Input in(device, x);
  Output to(device, out);
  std::optional<Input> added;
  if (residual != nullptr) added.emplace(device, *residual);
  const Vector<float> biases(device, bias, w.shape[0]);
  const Resident::Weight weight =
      direct ? weights.get(w)
             : weights.get(w, Form::patches, static_cast<size_t>(w.shape[0] * row * size),
                           [&](const void* stored, void* arranged) {
                             arrange_weights(device, w, row, stored, arranged);
                           });
  const int64_t step = direct
                           ? positions
                           : std::clamp<int64_t>(patch_bytes / (row * size) / kGemmTile * kGemmTile,
                                                 kGemmTile, positions + kGemmTile);
  const DeviceMemory patches(
      device, direct ? 0 : static_cast<size_t>(std::min(step, positions) * row * size));
  PatchArgs p = patch_args(x, w, conv, out);
  // In units of 16 bytes where channels are whole ones.
  const bool wide = x.shape[3] % unit == 0 && whole_quads(in.data(), false, 0);
  const int64_t units = wide ? unit : 1;
  p.x = in.data(), p.out = patches.as<void>();
  p.c = static_cast<int32_t>(x.shape[3] / units), p.row = static_cast<int32_t>(row / units);
  Gemm g{};
  g.w = weight.data(), g.w_stride = row, g.x_stride = row;
  g.out_stride = g.base_stride = w.shape[0];
  g.bias = biases.data();
  g.n = static_cast<int32_t>(w.shape[0]), g.k = static_cast<int32_t>(row);
  g.bf16 = g.out_bf16 = is_bf16(x), g.relu = conv.relu;
  for (int64_t begin = 0; begin < positions; begin += step) {
    const int64_t count = std::min(step, positions - begin);
    if (!direct) {
      p.first = begin, p.positions = static_cast<int32_t>(count);
      device.launch("network",
                    wide        ? "patches_16"
                    : size == 2 ? "patches_2"
                                : "patches_4",
                    {.blocks = walk_blocks(count * p.row), .threads = kWalkThreads}, p);
    }
    g.x = direct ? in.data() : patches.as<void>();
    g.out = to.as<char>() + begin * w.shape[0] * size;
    if (added) g.base = added->as<char>() + begin * w.shape[0] * size;
    g.m = static_cast<int32_t>(count);
    gemm(device, g, scratch_bytes(device, kGemmPartBytes));
  }
  to.store();
}

}  // namespace lacuna::cuda
