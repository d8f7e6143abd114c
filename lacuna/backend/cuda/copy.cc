// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cuda/copy.h"

#include <fmt/format.h>

#include <optional>

#include "lacuna/backend/cuda/decode_args.h"
#include "lacuna/backend/cuda/walk.h"
#include "lacuna/core/convert.h"
#include "lacuna/core/copy.h"
#include "lacuna/core/error.h"

namespace lacuna::cuda {
namespace {

size_t bytes_of(const TensorView& view) {
  return static_cast<size_t>(storage_bytes(view.dtype, view.numel()));
}

bool is_plain(DType dtype) {
  return dtype == DType::f32 || dtype == DType::bf16;
}

void decode(Device& device, const TensorView& from, const TensorView& to) {
  LACUNA_CHECK(reads(from.dtype), "copy: {}, expected a type that kernels read", from.describe());
  DecodeArgs args{};
  args.from = from.data;
  args.to = to.data;
  args.elements = to.numel();
  args.to_bf16 = to.dtype == DType::bf16;
  args.vector = whole_quads(to.data, args.to_bf16, 0);
  constexpr int64_t kPerBlock = int64_t{kDecodeThreads} * kDecodeGroup;
  device.launch("decode", fmt::format("decode_{}", dtype_name(from.dtype)),
                {.blocks = static_cast<int32_t>((args.elements + kPerBlock - 1) / kPerBlock),
                 .threads = kDecodeThreads},
                args);
}

void copy_on_device(Device& device, const TensorView& from, const TensorView& to) {
  if (from.dtype != to.dtype && !is_plain(from.dtype)) return decode(device, from, to);
  Loops loops({from, to});
  const bool convert = from.dtype != to.dtype;
  CopyArgs args{};
  args.vector = convert && loops.whole_quads();
  const auto element = static_cast<int>(storage_bytes(to.dtype, 1));
  const int unit = convert ? 0 : loops.join(element, 16);
  const std::string kernel = !convert                  ? fmt::format("copy_{}", unit)
                             : to.dtype == DType::bf16 ? "copy_to_bf16"
                                                       : "copy_to_f32";
  const int64_t from_bytes = convert ? storage_bytes(from.dtype, 1) : unit;
  const int64_t to_bytes = convert ? element : unit;
  loops.launch(convert ? 4 : 1, [&](const Walk& walk, const int64_t(&at)[kWalkViews]) {
    args.walk = walk;
    args.from = static_cast<const char*>(from.data) + at[0] * from_bytes;
    args.to = static_cast<char*>(to.data) + at[1] * to_bytes;
    device.launch("network", kernel, {.blocks = walk_blocks(walk.total), .threads = kWalkThreads},
                  args);
  });
}

void copy_in(Device& device, const TensorView& from, const TensorView& to) {
  if (from.dtype != to.dtype && !reads(from.dtype)) {
    const Tensor converted_here = converted(from, to.dtype, 1.0f, "copy");
    return copy_in(device, converted_here, to);
  }
  Tensor pack;
  TensorView source = from;
  if (!from.contiguous()) {
    pack = Tensor(from.dtype, std::span(from.shape.data(), static_cast<size_t>(from.rank)));
    copy_elements(from, pack);
    source = pack;
  }
  if (to.contiguous() && to.dtype == from.dtype)
    return device.upload(to.data, source.data, bytes_of(source));
  const DeviceMemory stage(device, bytes_of(source));
  device.upload(stage.as<void>(), source.data, bytes_of(source));
  copy_on_device(device, packed(to, from.dtype, stage.as<void>(), lacuna::Device::cuda), to);
}

void copy_out(Device& device, const TensorView& from, const TensorView& to) {
  std::optional<DeviceMemory> stage;
  TensorView source = from;
  if (!from.contiguous() || from.dtype != to.dtype) {
    stage.emplace(device, static_cast<size_t>(storage_bytes(to.dtype, to.numel())));
    source = packed(to, to.dtype, stage->as<void>(), lacuna::Device::cuda);
    copy_on_device(device, from, source);
  }
  if (to.contiguous()) return device.download(to.data, source.data, bytes_of(to));
  const Tensor pack(to.dtype, std::span(to.shape.data(), static_cast<size_t>(to.rank)));
  device.download(pack.view().data, source.data, bytes_of(to));
  copy_elements(pack, to);
}

// Staged memory is bounded: the longest dimension is halved until a piece is small enough.
void copy_staged(Device& device, const TensorView& from, const TensorView& to,
                 int64_t piece_bytes) {
  // As it is, or in blocks that cannot be cut anywhere.
  const bool plain =
      from.contiguous() && to.contiguous() && (from.dtype == to.dtype || !is_plain(from.dtype));
  int longest = 0;
  for (int i = 0; i < to.rank; ++i)
    if (to.shape[i] > to.shape[longest]) longest = i;
  if (!plain && to.rank > 0 && to.shape[longest] > 1 &&
      static_cast<int64_t>(bytes_of(to)) > piece_bytes) {
    const int64_t half = to.shape[longest] / 2;
    for (int64_t begin : {int64_t{0}, half}) {
      TensorView a = from, b = to;
      for (TensorView* view : {&a, &b}) {
        view->shape[longest] = begin == 0 ? half : to.shape[longest] - half;
        view->data = static_cast<char*>(view->data) +
                     storage_bytes(view->dtype, 1) * begin * view->stride[longest];
      }
      copy_staged(device, a, b, piece_bytes);
    }
  } else if (from.device == lacuna::Device::cpu) {
    copy_in(device, from, to);
  } else {
    copy_out(device, from, to);
  }
}

// Blocks of quantised types are bytes to a copy that keeps them, which takes them only contiguous.
TensorView as_bytes(const TensorView& view, DType other) {
  if (!is_quantized(view.dtype) || view.dtype != other) return view;
  TensorView bytes = make_view(view.data, DType::u8, {storage_bytes(view.dtype, view.numel())});
  bytes.device = view.device;
  return bytes;
}

}  // namespace

bool reads(DType dtype) {
  return is_plain(dtype) || is_quantized(dtype) || dtype == DType::f16 || dtype == DType::f8_e4m3 ||
         dtype == DType::f8_e5m2;
}

TensorView packed(const TensorView& like, DType dtype, void* data, lacuna::Device where) {
  TensorView view =
      make_view(data, dtype, std::span(like.shape.data(), static_cast<size_t>(like.rank)));
  view.device = where;
  return view;
}

void copy(Device& device, const TensorView& from_view, const TensorView& to_view,
          int64_t piece_bytes) {
  check_copy(from_view, to_view);
  if (to_view.numel() == 0) return;
  const TensorView from = as_bytes(from_view, to_view.dtype),
                   to = as_bytes(to_view, from_view.dtype);
  if (from.data == to.data && from.dtype == to.dtype && from.stride == to.stride) return;
  for (const TensorView* view : {&from, &to})
    LACUNA_CHECK(view->device == lacuna::Device::cpu || device.owns(view->data),
                 "copy: {} is not in this device's memory", view->describe());
  const bool from_host = from.device == lacuna::Device::cpu;
  const bool to_host = to.device == lacuna::Device::cpu;
  if (from_host && to_host) return copy_elements(from, to);
  if (!from_host && !to_host) return copy_on_device(device, from, to);
  copy_staged(device, from, to, piece_bytes);
}

}  // namespace lacuna::cuda
