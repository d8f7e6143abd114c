// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cuda/attend.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "lacuna/backend/attend_check.h"
#include "lacuna/backend/cuda/plan.h"
#include "lacuna/core/error.h"

namespace lacuna::cuda {
namespace {

constexpr float kLog2E = 1.44269504088896341f;

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

void check_aligned(const char* name, const void* base, int64_t head_stride, int64_t token_stride) {
  LACUNA_CHECK(reinterpret_cast<uintptr_t>(base) % 16 == 0 && head_stride % 8 == 0 &&
                   token_stride % 8 == 0 && token_stride > 0 && head_stride > 0,
               "attend: {} on the device with strides {} and {}, expected a 16-byte aligned base "
               "and positive multiples of 8",
               name, head_stride, token_stride);
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

// [heads, tokens, head_dim], contiguous on the device, of a strided tensor on the host. Heads that
// the call does not name are not copied.
class Packed {
 public:
  Packed(Device& device, const AttendParams& p, int64_t tokens)
      : device_(device),
        p_(p),
        tokens_(tokens),
        elements_(tensor_heads(p) * tokens * p.head_dim),
        memory_(device, static_cast<size_t>(elements_) * 2),
        host_(static_cast<size_t>(elements_)) {}

  void upload(const void* from, int64_t head_stride, int64_t token_stride) {
    const auto* x = static_cast<const uint16_t*>(from);
    for_rows(head_stride, token_stride, [&](uint16_t* packed, int64_t strided) {
      std::memcpy(packed, x + strided, row_bytes());
    });
    if (elements_ > 0) device_.upload(data(), host_.data(), host_.size() * 2);
  }
  void download(void* to, int64_t head_stride, int64_t token_stride) {
    if (elements_ > 0) device_.download(host_.data(), data(), host_.size() * 2);
    auto* x = static_cast<uint16_t*>(to);
    for_rows(head_stride, token_stride, [&](const uint16_t* packed, int64_t strided) {
      std::memcpy(x + strided, packed, row_bytes());
    });
  }
  void* data() const { return memory_.as<void>(); }
  int64_t token_stride() const { return p_.head_dim; }
  int64_t head_stride() const { return tokens_ * p_.head_dim; }

 private:
  size_t row_bytes() const { return static_cast<size_t>(p_.head_dim) * 2; }
  template <typename F>
  void for_rows(int64_t head_stride, int64_t token_stride, const F& f) {
    for (int32_t call = 0; call < p_.num_heads; ++call) {
      const int64_t h = p_.head_ids != nullptr ? p_.head_ids[call] : call;
      for (int64_t i = 0; i < tokens_; ++i)
        f(host_.data() + (h * tokens_ + i) * p_.head_dim, h * head_stride + i * token_stride);
    }
  }

  Device& device_;
  const AttendParams& p_;
  int64_t tokens_, elements_;
  DeviceMemory memory_;
  std::vector<uint16_t> host_;
};

// Elements of the bias that the call may read.
int64_t bias_elements(const AttendParams& p) {
  if (p.bias == nullptr) return 0;
  return (tensor_heads(p) - 1) * p.bias_head_stride + (p.q_len - 1) * p.bias_q_stride + p.k_len;
}

}  // namespace

std::string KernelId::name() const {
  const char* suffix = votes == Votes::none       ? "none"
                       : votes == Votes::per_tile ? "per_tile"
                                                  : "per_slot";
  return fmt::format("attend_{}_{}_d{}_{}", family == Family::sm90 ? "sm90" : "sm80",
                     dtype == AttendDType::bf16 ? "bf16" : "f16", head_dim, suffix);
}

std::string attend_unsupported(const AttendParams& p) {
  std::string why = check_attend(p);
  if (!why.empty()) return why;
  if (p.dtype == AttendDType::f32) return "attend: dtype f32 on cuda, expected bf16 or f16";
  if (p.head_dim != 64 && p.head_dim != 128)
    return fmt::format("attend: head_dim {} on cuda, expected 64 or 128", p.head_dim);
  if (!(p.sm_scale > 0.0f))
    return fmt::format("attend: sm_scale {} on cuda, expected above 0", p.sm_scale);
  if (p.bias != nullptr && (p.bias_head_stride < 0 || p.bias_q_stride < 0))
    return "attend: negative bias strides on cuda, expected 0 or more";
  return {};
}

double attend_resident(Device& device, const AttendParams& p) {
  const std::string why = attend_unsupported(p);
  if (!why.empty()) throw Error(why);
  if (p.pv_pairs != nullptr) std::fill_n(p.pv_pairs, p.num_heads, 0);
  if (p.num_heads == 0 || p.q_len == 0) return 0.0;
  check_aligned("q", p.q, p.q_head_stride, p.q_token_stride);
  check_aligned("out", p.out, p.out_head_stride, p.out_token_stride);
  if (p.k_len > 0) {
    check_aligned("k", p.k, p.k_head_stride, p.k_token_stride);
    check_aligned("v", p.v, p.v_head_stride, p.v_token_stride);
  }
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
  TensorMap maps[4] = {};
  if (device.family() == Family::sm90) make_maps(device, p, maps);
  const double ms = device.launch({device.family(), p.dtype, p.head_dim, plan.votes}, maps, args);
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
  Packed q(device, host, host.q_len), out(device, host, host.q_len);
  Packed k(device, host, host.k_len), v(device, host, host.k_len);
  q.upload(host.q, host.q_head_stride, host.q_token_stride);
  k.upload(host.k, host.k_head_stride, host.k_token_stride);
  v.upload(host.v, host.v_head_stride, host.v_token_stride);
  p.q = q.data(), p.q_head_stride = q.head_stride(), p.q_token_stride = q.token_stride();
  p.k = k.data(), p.k_head_stride = k.head_stride(), p.k_token_stride = k.token_stride();
  p.v = v.data(), p.v_head_stride = v.head_stride(), p.v_token_stride = v.token_stride();
  p.out = out.data(), p.out_head_stride = out.head_stride(),
  p.out_token_stride = out.token_stride();
  const auto bias_bytes = static_cast<size_t>(bias_elements(host)) * sizeof(float);
  const DeviceMemory bias(device, bias_bytes);
  if (bias_bytes > 0) device.upload(bias.as<void>(), host.bias, bias_bytes);
  p.bias = bias.as<float>();
  const auto rows = static_cast<size_t>(tensor_heads(host) * host.q_len);
  const DeviceMemory lse(device, host.lse != nullptr ? rows * sizeof(float) : 0);
  p.lse = lse.as<float>();
  attend_resident(device, p);
  out.download(host.out, host.out_head_stride, host.out_token_stride);
  if (host.lse == nullptr) return;
  std::vector<float> values(rows);
  device.download(values.data(), p.lse, rows * sizeof(float));
  for (int32_t call = 0; call < host.num_heads; ++call) {
    const int64_t h = host.head_ids != nullptr ? host.head_ids[call] : call;
    std::copy_n(values.begin() + h * host.q_len, host.q_len, host.lse + h * host.q_len);
  }
}

}  // namespace lacuna::cuda
