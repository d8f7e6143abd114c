// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cuda/attend.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "lacuna/backend/attend_check.h"
#include "lacuna/backend/cuda/attend_any_args.h"
#include "lacuna/backend/cuda/device_plan.h"
#include "lacuna/backend/cuda/operand.h"
#include "lacuna/core/error.h"

namespace lacuna::cuda {
namespace {

// Tensor heads that the call's memory must span.
int64_t tensor_heads(const AttendParams& p) {
  if (p.head_ids == nullptr) return p.num_heads;
  return *std::max_element(p.head_ids, p.head_ids + p.num_heads) + int64_t{1};
}

AttendArgs make_args(const AttendParams& p) {
  AttendArgs a{};
  a.q_len = static_cast<int32_t>(p.q_len);
  a.k_len = static_cast<int32_t>(p.k_len);
  a.q = p.q, a.k = p.k, a.v = p.v, a.out = p.out;
  a.q_head_stride = p.q_head_stride, a.q_token_stride = p.q_token_stride;
  a.k_head_stride = p.k_head_stride, a.k_token_stride = p.k_token_stride;
  a.v_head_stride = p.v_head_stride, a.v_token_stride = p.v_token_stride;
  a.out_head_stride = p.out_head_stride, a.out_token_stride = p.out_token_stride;
  a.scale_log2 = p.sm_scale * kLog2E;
  a.inv_scale = 1.0f / p.sm_scale;
  a.bias = p.bias;
  a.bias_head_stride = p.bias_head_stride, a.bias_q_stride = p.bias_q_stride;
  a.skip = p.skip;
  a.lse = p.lse;
  return a;
}

void make_maps(Device& device, const AttendParams& p, TensorMap (&maps)[4]) {
  const int64_t heads = tensor_heads(p), d = p.head_dim;
  maps[0] = device.tensor_map(p.q, d, p.q_len, heads, p.q_token_stride, p.q_head_stride);
  maps[3] = device.tensor_map(p.out, d, p.q_len, heads, p.out_token_stride, p.out_head_stride);
  // A tensor map cannot be empty; without keys nothing is loaded through these.
  maps[1] = maps[2] = maps[0];
  if (p.k_len == 0) return;
  maps[1] = device.tensor_map(p.k, d, p.k_len, heads, p.k_token_stride, p.k_head_stride);
  maps[2] = device.tensor_map(p.v, d, p.k_len, heads, p.v_token_stride, p.v_head_stride);
}

// Values that the host knows, wherever they are wanted.
template <typename T>
void write(Device& device, const std::vector<T>& values, T* to) {
  if (device.owns(to)) {
    device.upload(to, values.data(), values.size() * sizeof(T));
  } else {
    std::copy(values.begin(), values.end(), to);
  }
}

// Skip bits and pairs where nothing is dropped.
void all_kept(Device& device, const AttendParams& p, const std::vector<int64_t>& pairs) {
  if (p.pv_pairs != nullptr) write(device, pairs, p.pv_pairs);
  const int64_t head = p.num_q_blocks * mask_words(p.num_k_blocks);
  const std::vector<uint64_t> none(p.skip_bits == nullptr ? 0 : static_cast<size_t>(head));
  for (const int32_t h : head_ids(p))
    if (!none.empty()) write(device, none, p.skip_bits + h * head);
}

// What the tensor-core kernels are made for, wherever its tensors lie.
bool fits_tensor_cores(const AttendParams& p) {
  return p.dtype != AttendDType::f32 && (p.head_dim == 64 || p.head_dim == 128) &&
         p.sm_scale > 0.0f;
}

bool aligned(const void* base, int64_t head_stride, int64_t token_stride) {
  return reinterpret_cast<uintptr_t>(base) % 16 == 0 && head_stride % 8 == 0 &&
         token_stride % 8 == 0 && token_stride > 0 && head_stride > 0;
}
bool all_aligned(const AttendParams& p) {
  return aligned(p.q, p.q_head_stride, p.q_token_stride) &&
         aligned(p.out, p.out_head_stride, p.out_token_stride) &&
         (p.k_len == 0 || (aligned(p.k, p.k_head_stride, p.k_token_stride) &&
                           aligned(p.v, p.v_head_stride, p.v_token_stride)));
}

const char* dtype_suffix(AttendDType dtype) {
  return dtype == AttendDType::f32 ? "f32" : dtype == AttendDType::bf16 ? "bf16" : "f16";
}

void launch_any(Device& device, const AttendParams& p, const AttendArgs& args) {
  int dim = 64;
  while (dim < p.head_dim) dim *= 2;
  device.launch("attend_any", fmt::format("attend_any_{}_d{}", dtype_suffix(p.dtype), dim),
                {.blocks = args.num_jobs * kAnyBlocksPerJob,
                 .threads = kAnyThreads,
                 .shared_bytes = any_shared_bytes(dim)},
                AttendAnyArgs{args, p.head_dim});
}

TensorView tokens_view(const AttendParams& p, const void* data, int64_t tokens, int64_t head_stride,
                       int64_t token_stride) {
  const DType dtype = p.dtype == AttendDType::f32    ? DType::f32
                      : p.dtype == AttendDType::bf16 ? DType::bf16
                                                     : DType::f16;
  TensorView view =
      make_view(const_cast<void*>(data), dtype, {tensor_heads(p), tokens, int64_t{p.head_dim}});
  view.stride = {head_stride, token_stride, 1};
  return view;
}

TensorView bias_view(const AttendParams& p) {
  TensorView view =
      make_view(const_cast<float*>(p.bias), DType::f32, {tensor_heads(p), p.q_len, p.k_len});
  view.stride = {p.bias_head_stride, p.bias_q_stride, 1};
  return view;
}

}  // namespace

std::string KernelId::name() const {
  const char* suffix = votes == Votes::none       ? "none"
                       : votes == Votes::per_tile ? "per_tile"
                                                  : "per_slot";
  return fmt::format("attend_{}_{}_d{}_{}", family == Family::sm90 ? "sm90" : "sm80",
                     dtype_suffix(dtype), head_dim, suffix);
}

std::string attend_unsupported(const AttendParams& p) {
  std::string why = check_attend(p);
  if (!why.empty()) return why;
  if (p.head_dim > kAnyMostHeadDim)
    return fmt::format("attend: head_dim {} on cuda, expected 1 to {}", p.head_dim,
                       kAnyMostHeadDim);
  if (p.skip != SkipKind::none && !fits_tensor_cores(p))
    return fmt::format(
        "attend: skip rule with {}, head_dim {}, sm_scale {} on cuda, expected bf16 or f16, 64 or "
        "128, above 0",
        attend_dtype_name(p.dtype), p.head_dim, p.sm_scale);
  return {};
}

void attend_resident(Device& device, const AttendParams& p, size_t scratch) {
  const std::string why = attend_unsupported(p);
  if (!why.empty()) throw Error(why);
  const bool rule = p.skip != SkipKind::none;
  if (p.num_heads == 0 || p.q_len == 0) {
    if (p.pv_pairs != nullptr)
      write(device, std::vector<int64_t>(static_cast<size_t>(p.num_heads)), p.pv_pairs);
    return;
  }
  const bool tensor_cores = fits_tensor_cores(p) && all_aligned(p);
  LACUNA_CHECK(tensor_cores || !rule,
               "attend: unaligned tensors on the device with a skip rule, expected 16-byte aligned "
               "bases and strides of positive multiples of 8");
  const Plan plan = make_plan(p, scratch);
  const DevicePlan on_device(device, p, plan);
  const std::vector<int32_t> heads = head_ids(p);
  const int64_t rows = p.num_q_blocks, all = tensor_heads(p);
  Output bits(
      device,
      make_view(rule ? p.skip_bits : nullptr, DType::i64, {all, rows, mask_words(p.num_k_blocks)}),
      heads);
  Output mass(device, make_view(p.block_mass, DType::f32, {all, rows, int64_t{p.num_k_blocks}}),
              heads);
  Output pairs(device, make_view(rule ? p.pv_pairs : nullptr, DType::i64, {int64_t{p.num_heads}}));
  const bool own_lse = p.block_mass != nullptr && p.lse == nullptr;
  const DeviceMemory lse(device, own_lse ? static_cast<size_t>(all * p.q_len) * sizeof(float) : 0);
  AttendArgs args = make_args(p);
  if (own_lse) args.lse = lse.as<float>();
  TensorMap maps[4] = {};
  if (tensor_cores && device.family() == Family::sm90) make_maps(device, p, maps);
  for (size_t chunk = 0; chunk < plan.chunks.size(); ++chunk) {
    on_device.make_tiles(chunk);
    on_device.fill(args, chunk);
    if (tensor_cores) {
      device.launch({device.family(), p.dtype, p.head_dim, plan.votes}, maps, args);
    } else {
      launch_any(device, p, args);
    }
    on_device.fold(chunk, {bits.as<uint64_t>(), mass.as<float>(), args.lse});
  }
  if (!rule) all_kept(device, p, plan.pairs);
  if (rule && p.pv_pairs != nullptr) on_device.sum_pairs(pairs.as<int64_t>());
  bits.store();
  mass.store();
  pairs.store();
}

void attend(Device& device, const AttendParams& host) {
  const std::string why = attend_unsupported(host);
  if (!why.empty()) throw Error(why);
  AttendParams p = host;
  if (p.num_heads == 0 || p.q_len == 0) {
    attend_resident(device, p);
    return;
  }
  const std::vector<int32_t> heads = head_ids(host);
  const Input q(device,
                tokens_view(host, host.q, host.q_len, host.q_head_stride, host.q_token_stride),
                heads);
  const Input k(device,
                tokens_view(host, host.k, host.k_len, host.k_head_stride, host.k_token_stride),
                heads);
  const Input v(device,
                tokens_view(host, host.v, host.k_len, host.v_head_stride, host.v_token_stride),
                heads);
  Output out(device,
             tokens_view(host, host.out, host.q_len, host.out_head_stride, host.out_token_stride),
             heads);
  const Input bias(device, bias_view(host), heads);
  Output lse(device, make_view(host.lse, DType::f32, {tensor_heads(host), host.q_len}), heads);
  p.q = q.data(), p.q_head_stride = q.stride(0), p.q_token_stride = q.stride(1);
  p.k = k.data(), p.k_head_stride = k.stride(0), p.k_token_stride = k.stride(1);
  p.v = v.data(), p.v_head_stride = v.stride(0), p.v_token_stride = v.stride(1);
  p.out = out.data(), p.out_head_stride = out.stride(0), p.out_token_stride = out.stride(1);
  p.bias = bias.as<float>(), p.bias_head_stride = bias.stride(0), p.bias_q_stride = bias.stride(1);
  p.lse = lse.as<float>();
  attend_resident(device, p,
                  static_cast<size_t>(scratch_bytes(device, static_cast<int64_t>(kAttendScratch))));
  out.store();
  lse.store();
}

}  // namespace lacuna::cuda
