// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cpu/attend_skip.h"

#include <bit>
#include <cmath>
#include <limits>

namespace lacuna::cpu {
namespace {

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kInf = std::numeric_limits<float>::infinity();

// log2 of a positive normal number to 2e-7 without a library call, so that a loop over rows
// vectorises: x = 2^e m with m in [sqrt(1/2), sqrt(2)), log m by the odd series of atanh.
inline float log2_positive(float x) {
  const int32_t bits = std::bit_cast<int32_t>(x);
  const int32_t e = (bits - 0x3f3504f3) >> 23;
  const float m = std::bit_cast<float>(bits - (e << 23));
  const float t = (m - 1.0f) / (m + 1.0f), t2 = t * t;
  const float series =
      1.0f + t2 * (0.333333333f + t2 * (0.2f + t2 * (0.142857143f + t2 * 0.111111111f)));
  return static_cast<float>(e) + 2.0f * kLog2E * t * series;
}

// Rows that want to keep the piece. A row whose logits are all -inf loses nothing; a row that has
// kept nothing yet cannot skip.
template <typename Skips>
bool unanimous(int32_t rows, const TileRows& s, const Skips& skips) {
  int32_t against = 0;
  for (int32_t r = 0; r < rows; ++r)
    against += !(s.mhat[r] == -kInf || (s.m[r] != -kInf && skips(r)));
  return against == 0;
}

}  // namespace

SkipVote::SkipVote(const AttendParams& p, int32_t call) : kind_(p.skip) {
  if (kind_ == SkipKind::none) return;
  const float param = p.skip_param[call];
  switch (kind_) {
    case SkipKind::none:
      break;
    case SkipKind::running_max:
      threshold_ = std::log2(param);
      break;
    case SkipKind::running_lse:
      threshold_ = param * kLog2E;
      break;
    case SkipKind::recall:
      threshold_ = static_cast<float>((1.0 - double{param}) / double{param});
      break;
  }
  if (p.skip_kappa != nullptr) kappa_ = p.skip_kappa[call];
}

bool SkipVote::drop(const KernelOps& ops, int32_t rows, int32_t keys, TileRows& s) const {
  if (kind_ == SkipKind::running_max)
    return unanimous(rows, s, [&](int32_t r) { return s.mhat[r] - s.m[r] < threshold_; });
  if (kind_ == SkipKind::running_lse)
    return unanimous(rows, s, [&](int32_t r) {
      return s.mhat[r] - s.m[r] - log2_positive(s.l[r]) < threshold_;
    });
  // Mass the piece can hold at most: kappa n 2^(mhat - m).
  alignas(64) float above[kVoteRows];
  for (int32_t r = 0; r < kVoteRows; ++r) above[r] = s.mhat[r] - s.m[r];
  ops.exp2_rows(above, s.sum);
  const float scale = kappa_ * static_cast<float>(keys);
  const bool drop = unanimous(
      rows, s, [&](int32_t r) { return s.u[r] + scale * s.sum[r] <= threshold_ * s.l[r]; });
  if (drop)
    for (int32_t r = 0; r < rows; ++r) s.u[r] += s.mhat[r] == -kInf ? 0.0f : scale * s.sum[r];
  return drop;
}

void SkipVote::kept(TileRows& s) const {
  if (kind_ != SkipKind::recall) return;
  for (int32_t r = 0; r < kVoteRows; ++r) s.u[r] *= s.alpha[r];
}

}  // namespace lacuna::cpu
