// SPDX-License-Identifier: Apache-2.0
#include "lacuna/engine/trace.h"

#include <nlohmann/json.hpp>

#include "lacuna/core/error.h"

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

std::string Trace::to_json() const {
  std::string text = "[";
  for (const TraceEntry& entry : entries_) {
    nlohmann::ordered_json line;
    line["step"] = entry.site.step;
    line["num_steps"] = entry.site.num_steps;
    line["sigma"] = entry.site.sigma;
    line["layer"] = entry.site.layer;
    line["branch"] = entry.site.branch == Branch::cond ? "cond" : "uncond";
    line["expert"] = entry.site.expert;
    line["method"] = entry.method;
    line["reason"] = entry.reason;
    line["num_heads"] = entry.num_heads;
    line["heads_refreshed"] = entry.heads_refreshed;
    line["qk_density"] = entry.qk_density;
    line["pv_density"] = entry.pv_density;
    line["pooled_density"] = entry.pooled_density;
    line["select_ms"] = entry.select_ms;
    line["attend_ms"] = entry.attend_ms;
    line["mask_hash"] = fmt::format("{:016x}", entry.mask_hash);
    text += text.size() > 1 ? ",\n" : "\n";
    text += line.dump();
  }
  return text + "\n]\n";
}

}  // namespace lacuna
