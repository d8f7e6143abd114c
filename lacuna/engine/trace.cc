// SPDX-License-Identifier: Apache-2.0
#include "lacuna/engine/trace.h"

namespace lacuna {

namespace {

double sum_of(const std::vector<TraceEntry>& entries, int step, double TraceEntry::*member,
              int64_t* count = nullptr) {
  double sum = 0.0;
  for (const TraceEntry& entry : entries) {
    if (step >= 0 && entry.site.step != step) continue;
    sum += entry.*member;
    if (count != nullptr) ++*count;
  }
  return sum;
}

double mean_of(const std::vector<TraceEntry>& entries, int step, double TraceEntry::*member) {
  int64_t count = 0;
  const double sum = sum_of(entries, step, member, &count);
  return count == 0 ? 1.0 : sum / static_cast<double>(count);
}

}  // namespace

double Trace::qk_density(int step) const {
  return mean_of(entries_, step, &TraceEntry::qk_density);
}
double Trace::pv_density(int step) const {
  return mean_of(entries_, step, &TraceEntry::pv_density);
}
double Trace::select_ms(int step) const {
  return sum_of(entries_, step, &TraceEntry::select_ms);
}
double Trace::attend_ms(int step) const {
  return sum_of(entries_, step, &TraceEntry::attend_ms);
}

}  // namespace lacuna
