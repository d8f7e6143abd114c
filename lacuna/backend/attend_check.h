// SPDX-License-Identifier: Apache-2.0
// Whether an attention call makes sense, whatever runs it. The oracle shares it: what may be asked
// is no arithmetic.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>

#include "lacuna/backend/attend_params.h"

namespace lacuna {

inline const char* attend_dtype_name(AttendDType dtype) {
  switch (dtype) {
    case AttendDType::f32:
      return "f32";
    case AttendDType::bf16:
      return "bf16";
    case AttendDType::f16:
      return "f16";
  }
  return "unknown";
}

namespace attend_check {

inline std::string pointers_wrong(const AttendParams& p) {
  if (p.q == nullptr || p.out == nullptr) return "attend: q or out null";
  if (p.k_len > 0 && (p.k == nullptr || p.v == nullptr)) return "attend: k or v null";
  return {};
}

inline std::string sizes_wrong(const AttendParams& p) {
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

inline std::string layout_wrong(const char* side, int64_t len, int32_t block, int32_t num_blocks,
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

inline std::string mask_wrong(const AttendParams& p) {
  const int32_t in_last = p.num_k_blocks % 64;
  if (p.mask == nullptr || in_last == 0) return {};
  const int64_t words = (int64_t{p.num_k_blocks} + 63) / 64;
  for (int64_t row = 0; row < int64_t{p.num_heads} * p.num_q_blocks; ++row)
    if (p.mask[(row + 1) * words - 1] >> in_last != 0)
      return fmt::format(
          "attend: mask of call index {} query block {} has bits past key block {}, expected none",
          row / p.num_q_blocks, row % p.num_q_blocks, p.num_k_blocks - 1);
  return {};
}

inline std::string skip_wrong(const AttendParams& p) {
  if (p.skip == SkipKind::none) return {};
  if (p.skip_param == nullptr) return "attend: skip_param null, expected one value per head";
  for (int32_t head = 0; head < p.num_heads; ++head) {
    const float x = p.skip_param[head];
    if (p.skip == SkipKind::running_max && !(x >= 0.0f))
      return fmt::format("attend: running_max {} of call index {}, expected 0 or more", x, head);
    if (p.skip == SkipKind::running_lse && std::isnan(x))
      return fmt::format("attend: running_lse {} of call index {}, expected a number", x, head);
    if (p.skip == SkipKind::recall && !(x > 0.0f && x <= 1.0f))
      return fmt::format("attend: recall {} of call index {}, expected above 0 and at most 1", x,
                         head);
    if (p.skip_kappa != nullptr && !(p.skip_kappa[head] > 0.0f))
      return fmt::format("attend: skip_kappa {} of call index {}, expected above 0",
                         p.skip_kappa[head], head);
  }
  return {};
}

}  // namespace attend_check

// What is wrong with the call's sizes, layouts, mask and skip rule, or empty. Says nothing about
// dtype and head_dim that a backend can do.
inline std::string check_attend(const AttendParams& p) {
  std::string why = attend_check::sizes_wrong(p);
  if (!why.empty() || p.num_heads == 0 || p.q_len == 0) return why;
  why = attend_check::pointers_wrong(p);
  if (why.empty())
    why = attend_check::layout_wrong("q", p.q_len, p.block_q, p.num_q_blocks, p.q_offsets,
                                     p.num_heads);
  if (why.empty())
    why = attend_check::layout_wrong("k", p.k_len, p.block_k, p.num_k_blocks, p.k_offsets,
                                     p.num_heads);
  if (why.empty()) why = attend_check::mask_wrong(p);
  if (why.empty()) why = attend_check::skip_wrong(p);
  return why;
}

}  // namespace lacuna
