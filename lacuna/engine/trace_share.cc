// SPDX-License-Identifier: Apache-2.0
#include "lacuna/engine/trace_share.h"

#include <algorithm>
#include <map>
#include <tuple>

#include "lacuna/core/error.h"
#include "lacuna/core/rng.h"
#include "lacuna/engine/trace_file.h"

namespace lacuna {
namespace {

using Heads = std::vector<TraceEntry>;  // of one site, by rank

double mean_over_heads(const Heads& ranks, double TraceEntry::*member) {
  double sum = 0.0, heads = 0.0;
  for (const TraceEntry& entry : ranks) {
    sum += entry.*member * entry.num_heads;
    heads += entry.num_heads;
  }
  return sum / heads;
}

TraceEntry merged(const Heads& ranks) {
  TraceEntry all = ranks.front();
  std::string hashes;
  for (size_t r = 0; r < ranks.size(); ++r) {
    const TraceEntry& entry = ranks[r];
    if (entry.mask_hash != 0) hashes += fmt::format("{}:{:016x};", r, entry.mask_hash);
    if (entry.reason.empty()) all.reason.clear();  // dense in some heads only
    if (r == 0) continue;
    all.num_heads += entry.num_heads;
    all.heads_refreshed += entry.heads_refreshed;
    all.select_ms = std::max(all.select_ms, entry.select_ms);
    all.attend_ms = std::max(all.attend_ms, entry.attend_ms);
  }
  for (const auto member :
       {&TraceEntry::qk_density, &TraceEntry::pv_density, &TraceEntry::pooled_density})
    all.*member = mean_over_heads(ranks, member);
  if (ranks.size() > 1 && !hashes.empty()) all.mask_hash = fnv1a64(hashes);
  return all;
}

}  // namespace

void share_trace(Team& team, Trace& trace, size_t first) {
  Json own = Json::array();
  for (size_t i = first; i < trace.entries().size(); ++i)
    own.push_back(call_json(trace.entries()[i]));
  std::map<std::tuple<int, Branch, int>, Heads> sites;
  for (const std::string& text : all_gather(team, own.dump())) {
    for (const Json& call : parse_json(text, "trace of another process")) {
      TraceEntry entry = parse_call(call, "trace of another process");
      sites[{entry.site.step, entry.site.branch, entry.site.layer}].push_back(std::move(entry));
    }
  }
  trace.cut(first);
  for (const auto& [site, ranks] : sites) trace.add(merged(ranks));
}

}  // namespace lacuna
