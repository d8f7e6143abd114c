// SPDX-License-Identifier: Apache-2.0
// What attention drops while it runs, one formula per rule. Words as in the sources: mhat = maximum
// of a row's logits in the piece at hand, n = keys of the piece, and of the pieces kept so far
// m = maximum, l = sum of exp(logit - m), lse = m + ln l. All natural logarithms.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "lacuna/backend/attend_params.h"

namespace lacuna::ref {

inline constexpr double kNegInf = -std::numeric_limits<double>::infinity();

struct SkipRule {
  SkipKind kind = SkipKind::none;
  double param = 0.0;
  double kappa = 1.0;
};

struct RowState {
  double m = kNegInf;
  double l = 0.0;
  double dropped = 0.0;  // U: bound on the dropped mass, in units of exp(m)

  double lse() const { return m + std::log(l); }
};

// BLASST, arXiv 2512.12087: mhat - m < ln(lambda).
inline bool running_max_skips(const RowState& row, double mhat, double lambda) {
  return mhat - row.m < std::log(lambda);
}

// Cumulative energy filtering, arXiv 2606.16317 eq. 5 and 6: mhat - lse < lambda.
inline bool running_lse_skips(const RowState& row, double mhat, double lambda) {
  return mhat - row.lse() < lambda;
}

// Mass the piece can hold at most, in units of exp(m): n e^(mhat - m), times kappa (1 = certain).
inline double mass_bound(const RowState& row, double mhat, int64_t n, double kappa) {
  return kappa * static_cast<double>(n) * std::exp(mhat - row.m);
}

// Certified recall: with l never shrinking and U <= (1-r)/r l after every skip,
// recall = kept / (kept + dropped) >= l / (l + U) >= r.
inline bool recall_skips(const RowState& row, double mhat, int64_t n, double r, double kappa) {
  return row.dropped + mass_bound(row, mhat, n, kappa) <= (1.0 - r) / r * row.l;
}

// One row's vote on a piece of n keys; the piece goes only if all rows of the tile agree.
inline bool votes_to_skip(const SkipRule& rule, const RowState& row, double mhat, int64_t n) {
  if (mhat == kNegInf) return true;    // nothing to lose
  if (row.m == kNegInf) return false;  // nothing kept yet
  switch (rule.kind) {
    case SkipKind::none:
      return false;
    case SkipKind::running_max:
      return running_max_skips(row, mhat, rule.param);
    case SkipKind::running_lse:
      return running_lse_skips(row, mhat, rule.param);
    case SkipKind::recall:
      return recall_skips(row, mhat, n, rule.param, rule.kappa);
  }
  return false;
}

// m and l stay untouched even when mhat > m: a skipped maximum is never merged.
inline void on_skip(const SkipRule& rule, RowState& row, double mhat, int64_t n) {
  if (rule.kind == SkipKind::recall && mhat != kNegInf)
    row.dropped += mass_bound(row, mhat, n, rule.kappa);
}

inline void on_keep(RowState& row, const double* logits, int64_t n, double mhat) {
  if (mhat > row.m) {
    const double rescale = row.m == kNegInf ? 0.0 : std::exp(row.m - mhat);
    row.l *= rescale;
    row.dropped *= rescale;
    row.m = mhat;
  }
  for (int64_t j = 0; j < n; ++j)
    if (logits[j] != kNegInf) row.l += std::exp(logits[j] - row.m);
}

}  // namespace lacuna::ref
