// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cpu/attend.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "lacuna/backend/cpu/attend_run.h"
#include "lacuna/backend/cpu/kernel_ops.h"
#include "lacuna/core/error.h"

namespace lacuna::cpu {
namespace {

std::string check_pointers(const AttendParams& p) {
  if (p.q == nullptr || p.out == nullptr) return "attend: q or out null";
  if (p.k_len > 0 && (p.k == nullptr || p.v == nullptr)) return "attend: k or v null";
  return {};
}

std::string check_sizes(const AttendParams& p) {
  if (p.dtype != AttendDType::f32 && p.dtype != AttendDType::bf16)
    return fmt::format("attend: dtype {}, expected f32 or bf16", static_cast<int>(p.dtype));
  if (p.head_dim < 1 || p.head_dim > 1024)
    return fmt::format("attend: head_dim {}, expected 1 to 1024", p.head_dim);
  const auto fits = [](int64_t n) { return n >= 0 && n <= INT32_MAX; };
  if (p.num_heads < 0 || !fits(p.q_len) || !fits(p.k_len))
    return fmt::format("attend: {} heads, q_len {}, k_len {}, expected 0 to 2^31-1", p.num_heads,
                       p.q_len, p.k_len);
  if (!std::isfinite(p.sm_scale))
    return fmt::format("attend: sm_scale {}, expected a finite number", p.sm_scale);
  return {};
}

std::string check_layout(const char* side, int64_t len, int32_t block, int32_t num_blocks,
                         const int32_t* offsets, int32_t num_heads) {
  if (offsets == nullptr) {
    if (block < 1) return fmt::format("attend: block_{} {}, expected 1 or more", side, block);
    const int64_t expected = (len + block - 1) / block;
    if (num_blocks != expected)
      return fmt::format("attend: num_{}_blocks {}, expected {} for {} tokens in blocks of {}",
                         side, num_blocks, expected, len, block);
    return {};
  }
  if (num_blocks < 1)
    return fmt::format("attend: num_{}_blocks {}, expected 1 or more with offsets", side,
                       num_blocks);
  for (int32_t head = 0; head < num_heads; ++head) {
    const int32_t* row = offsets + head * (int64_t{num_blocks} + 1);
    if (row[0] != 0 || row[num_blocks] != len || !std::is_sorted(row, row + num_blocks + 1))
      return fmt::format("attend: {}_offsets of call index {}, expected to rise from 0 to {}", side,
                         head, len);
  }
  return {};
}

std::string check_lists(const AttendParams& p) {
  if (p.row_begin == nullptr) return {};
  const int64_t rows = int64_t{p.num_heads} * p.num_q_blocks;
  if (p.row_begin[0] < 0 || !std::is_sorted(p.row_begin, p.row_begin + rows + 1))
    return "attend: row_begin, expected to rise from 0";
  if (p.row_begin[rows] > p.row_begin[0] && p.cols == nullptr)
    return "attend: cols null, expected a list with row_begin";
  for (int64_t i = p.row_begin[0]; i < p.row_begin[rows]; ++i)
    if (p.cols[i] < 0 || p.cols[i] >= p.num_k_blocks)
      return fmt::format("attend: key block {} listed, expected 0 to {}", p.cols[i],
                         p.num_k_blocks - 1);
  return {};
}

std::string check_skip(const AttendParams& p) {
  if (p.skip == SkipKind::none) return {};
  if (p.skip_param == nullptr) return "attend: skip_param null, expected one value per head";
  for (int32_t head = 0; head < p.num_heads; ++head) {
    const float x = p.skip_param[head];
    bool good = false;
    switch (p.skip) {
      case SkipKind::none:
        good = true;
        break;
      case SkipKind::running_max:
        good = x >= 0.0f;
        break;
      case SkipKind::running_lse:
        good = !std::isnan(x);
        break;
      case SkipKind::recall:
        good = x > 0.0f && x <= 1.0f;
        break;
    }
    if (!good)
      return fmt::format(
          "attend: skip_param {} of call index {}, expected running_max >= 0, running_lse a "
          "number, "
          "recall above 0 and at most 1",
          x, head);
    if (p.skip_kappa != nullptr && !(p.skip_kappa[head] > 0.0f))
      return fmt::format("attend: skip_kappa {} of call index {}, expected above 0",
                         p.skip_kappa[head], head);
  }
  return {};
}

}  // namespace

const KernelOps& attend_kernel(AttendDType dtype, int32_t head_dim, Isa isa) {
  if (isa == Isa::avx2) return kAttendF32Avx2;
  if (dtype == AttendDType::f32 || isa == Isa::avx512) return kAttendF32Avx512;
  if (isa == Isa::amx && head_dim % kAttendBf16Amx.dim_multiple == 0) return kAttendBf16Amx;
  if (head_dim % kAttendBf16Avx512Bf16.dim_multiple == 0) return kAttendBf16Avx512Bf16;
  return kAttendF32Avx512;
}

std::string attend_unsupported(const AttendParams& p) {
  std::string why = check_sizes(p);
  if (!why.empty() || p.num_heads == 0 || p.q_len == 0) return why;
  why = check_pointers(p);
  if (why.empty())
    why = check_layout("q", p.q_len, p.block_q, p.num_q_blocks, p.q_offsets, p.num_heads);
  if (why.empty())
    why = check_layout("k", p.k_len, p.block_k, p.num_k_blocks, p.k_offsets, p.num_heads);
  if (why.empty()) why = check_lists(p);
  if (why.empty()) why = check_skip(p);
  return why;
}

void attend(const AttendParams& params, Isa isa) {
  const std::string why = attend_unsupported(params);
  if (!why.empty()) throw Error(why);
  run_attend(params, attend_kernel(params.dtype, params.head_dim, isa));
}

std::string attend_kernel_name(const AttendParams& params, Isa isa) {
  const bool pair_bias = params.bias != nullptr && params.bias_q_stride != 0;
  if ((params.head_dim != 64 && params.head_dim != 128) || pair_bias) return "generic";
  const KernelOps& ops = attend_kernel(params.dtype, params.head_dim, isa);
  const bool converted = params.dtype == AttendDType::bf16 && ops.element_bytes == 4;
  return converted ? fmt::format("bf16 via {}", ops.name) : ops.name;
}

}  // namespace lacuna::cpu
