// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cuda/attend.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "lacuna/backend/attend_check.h"
#include "lacuna/backend/cuda/attend_any_args.h"
#include "lacuna/backend/cuda/operand.h"
#include "lacuna/backend/cuda/plan.h"
#include "lacuna/core/error.h"

namespace lacuna::cuda {
namespace {

// Tensor heads that the call's memory must span.
int64_t tensor_heads(const AttendParams& p) {
  if (p.head_ids == nullptr) return p.num_heads;
  return *std::max_element(p.head_ids, p.head_ids + p.num_heads) + int64_t{1};
}

// Parameters in the units of the kernel's votes (AttendArgs::threshold).
std::vector<float> thresholds(const AttendParams& p) {
  std::vector<float> out;
  for (int32_t i = 0; p.skip != SkipKind::none && i < p.num_heads; ++i) {
    const float x = p.skip_param[i];
    switch (p.skip) {
      case SkipKind::none:
        break;
      case SkipKind::running_max:
        out.push_back(std::log2(x));
        break;
      case SkipKind::running_lse:
        out.push_back(x * kLog2E);
        break;
      case SkipKind::recall:
        out.push_back(static_cast<float>((1.0 - double{x}) / double{x}));
        break;
    }
  }
  return out;
}

std::vector<float> kappas(const AttendParams& p) {
  if (p.skip == SkipKind::none) return {};
  const auto n = static_cast<size_t>(p.num_heads);
  return p.skip_kappa == nullptr ? std::vector<float>(n, 1.0f)
                                 : std::vector<float>(p.skip_kappa, p.skip_kappa + n);
}

AttendArgs make_args(const AttendParams& p, const Plan& plan) {
  AttendArgs a{};
  a.num_jobs = static_cast<int32_t>(plan.jobs.size());
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

// What the kernel leaves behind, brought to the host and folded.
void fold_from_device(Device& device, const AttendParams& p, const Plan& plan,
                      const AttendArgs& args) {
  const auto tiles = static_cast<size_t>(plan.out_tiles);
  std::vector<uint8_t> kept(args.kept != nullptr ? tiles * 2 : 0);
  std::vector<float> slot_lse(args.slot_lse != nullptr ? tiles * 4 * kHalfRows : 0), lse;
  if (!kept.empty()) device.download(kept.data(), args.kept, kept.size());
  if (!slot_lse.empty()) {
    device.download(slot_lse.data(), args.slot_lse, slot_lse.size() * sizeof(float));
    lse.resize(static_cast<size_t>(tensor_heads(p) * p.q_len));
    device.download(lse.data(), args.lse, lse.size() * sizeof(float));
  }
  fold_outputs(p, plan, kept.empty() ? nullptr : kept.data(),
               slot_lse.empty() ? nullptr : slot_lse.data(), lse.empty() ? nullptr : lse.data());
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

double attend_resident(Device& device, const AttendParams& p) {
  const std::string why = attend_unsupported(p);
  if (!why.empty()) throw Error(why);
  if (p.pv_pairs != nullptr) std::fill_n(p.pv_pairs, p.num_heads, 0);
  if (p.num_heads == 0 || p.q_len == 0) return 0.0;
  const bool tensor_cores = fits_tensor_cores(p) && all_aligned(p);
  LACUNA_CHECK(tensor_cores || p.skip == SkipKind::none,
               "attend: unaligned tensors on the device with a skip rule, expected 16-byte aligned "
               "bases and strides of positive multiples of 8");
  const Plan plan = make_plan(p);
  AttendArgs args = make_args(p, plan);
  const DeviceMemory jobs(device, plan.jobs), tiles(device, plan.tiles);
  const DeviceMemory threshold(device, thresholds(p)), kappa(device, kappas(p));
  const DeviceMemory counter(device, std::vector<int32_t>{0});
  const bool rule = p.skip != SkipKind::none, mass = p.block_mass != nullptr;
  const auto out_tiles = static_cast<size_t>(plan.out_tiles);
  const DeviceMemory kept(device, rule ? out_tiles * 2 : 0);
  const DeviceMemory slot_lse(device, mass ? out_tiles * 4 * kHalfRows * sizeof(float) : 0);
  const bool own_lse = mass && p.lse == nullptr;
  const DeviceMemory lse(
      device, own_lse ? static_cast<size_t>(tensor_heads(p) * p.q_len) * sizeof(float) : 0);
  args.jobs = jobs.as<Job>();
  args.tiles = tiles.as<KeyTile>();
  args.counter = counter.as<int32_t>();
  args.threshold = threshold.as<float>();
  args.kappa = kappa.as<float>();
  args.kept = kept.as<uint8_t>();
  args.slot_lse = slot_lse.as<float>();
  if (own_lse) args.lse = lse.as<float>();
  double ms = 0.0;
  if (tensor_cores) {
    TensorMap maps[4] = {};
    if (device.family() == Family::sm90) make_maps(device, p, maps);
    ms = device.launch({device.family(), p.dtype, p.head_dim, plan.votes}, maps, args);
  } else {
    launch_any(device, p, args);
  }
  fold_from_device(device, p, plan, args);
  return ms;
}

void attend(Device& device, const AttendParams& host) {
  const std::string why = attend_unsupported(host);
  if (!why.empty()) throw Error(why);
  AttendParams p = host;
  if (p.num_heads == 0 || p.q_len == 0) {
    attend_resident(device, p);
    return;
  }
  std::vector<int32_t> heads(static_cast<size_t>(host.num_heads));
  for (int32_t i = 0; i < host.num_heads; ++i)
    heads[static_cast<size_t>(i)] = host.head_ids != nullptr ? host.head_ids[i] : i;
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
  attend_resident(device, p);
  out.store();
  lse.store();
}

}  // namespace lacuna::cuda
