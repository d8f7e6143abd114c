// SPDX-License-Identifier: Apache-2.0
#include "cli/audit.h"

#include <fmt/format.h>

#include <set>

#include "cli/options.h"
#include "lacuna/core/atomic_file.h"
#include "lacuna/core/available_memory.h"
#include "lacuna/core/printable.h"
#include "lacuna/engine/explain.h"
#include "lacuna/report/manifest.h"

namespace lacuna::cli {

void AuditOptions::add_to(CLI::App& command) {
  auto* group = command.add_option_group("Audit");
  group->add_option("--trace", trace, "Write what ran in every attention call as JSON")
      ->check(names_a_file());
  group
      ->add_option("--save-masks", save_masks,
                   "Write the masks of every attention call to this file (.safetensors)")
      ->check(names_a_file());
  group
      ->add_option("--replay-masks", replay_masks,
                   "Repeat the masks of --save-masks exactly, instead of -a")
      ->check(names_a_file());
  group
      ->add_option("--manifest", manifest,
                   "Write what the run was, made and measured as one JSON object")
      ->check(names_a_file());
  group->add_flag("--strict", strict, "A dense attention call that no rule asked for is an error");
  group->add_flag("--explain", explain, "Show which rule ran in which steps and layers, and why");
  group->add_flag("--dry-run", dry_run,
                  "Check everything that can be checked, show the plan, run nothing");
}

Audit::Audit(const AuditOptions& options, Model& model, const Request& request,
             GenerationHooks& hooks)
    : options_(options) {
  for (const std::string* path : {&options.trace, &options.save_masks, &options.manifest})
    if (!path->empty()) AtomicFile writable(*path);
  hooks.strict = options.strict;
  hooks.plan_only = options.dry_run;
  if (options.save_masks.empty()) return;
  // Half of what is free: the generation needs the rest.
  masks_.emplace(profile_target(model, request), available_memory() / 2,
                 run_name(Json::parse(request.to_json())));
  hooks.selections = [this](const auto&... seen) { masks_->add(seen...); };
}

void Audit::save(const GenerationResult& result, Model& model, const Request& request,
                 const Backend& backend, const std::filesystem::path& output) const {
  if (options_.dry_run) return;
  if (masks_) masks_->save(options_.save_masks);
  if (options_.trace.empty() && options_.manifest.empty()) return;
  const RunHeader header = run_header(model, request, backend, result.rules);
  if (!options_.trace.empty()) save_trace(options_.trace, header, result.trace);
  if (options_.manifest.empty()) return;
  AtomicFile file(options_.manifest);
  // A file name need not be UTF-8.
  file.write(
      manifest_json(header, result, output).dump(1, ' ', false, Json::error_handler_t::replace) +
      "\n");
  file.commit();
}

std::string explain_text(const GenerationResult& result, bool planned) {
  std::string text =
      fmt::format("{:<9} {:<9} {:<7} {:>6} {:>10} {:>7} {:>6} {:>6}  {}\n", "steps", "layers",
                  "branch", "calls", "refreshed", "reused", "QK", "PV", "what and why");
  for (const ExplainRow& row : explain(result.trace.entries(), result.rules)) {
    const auto count = [&](int64_t heads) {
      return planned || heads == 0 ? std::string("-") : fmt::format("{}", heads);
    };
    const auto density = [&](double value) {
      return planned ? std::string("-") : fmt::format("{:.3f}", value);
    };
    text += fmt::format("{:<9} {:<9} {:<7} {:>6} {:>10} {:>7} {:>6} {:>6}  {}{}\n",
                        range_text(row.step_begin, row.step_end),
                        range_text(row.layer_begin, row.layer_end), row.branch, row.calls,
                        count(row.refreshed), count(row.reused), density(row.qk_density),
                        density(row.pv_density), one_line(row.what),
                        row.why.empty() ? "" : fmt::format(" ({})", one_line(row.why)));
  }
  return text;
}

nlohmann::ordered_json explain_json(const GenerationResult& result, bool planned) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const ExplainRow& row : explain(result.trace.entries(), result.rules)) {
    nlohmann::ordered_json json = {{"steps", {row.step_begin, row.step_end - 1}},
                                   {"layers", {row.layer_begin, row.layer_end - 1}},
                                   {"branch", row.branch},
                                   {"what", row.what},
                                   {"why", row.why},
                                   {"calls", row.calls}};
    if (!planned) {
      json["heads_refreshed"] = row.refreshed;
      json["heads_reused"] = row.reused;
      json["qk_density"] = row.qk_density;
      json["pv_density"] = row.pv_density;
    }
    list.push_back(std::move(json));
  }
  return list;
}

std::string why_all_dense(const Trace& trace) {
  std::set<std::string> reasons;
  for (const TraceEntry& call : trace.entries()) reasons.insert(call.reason);
  // A method that kept everything did run: -a dense, or a skip rule without a mask.
  if (reasons.empty() || reasons.contains("") || reasons.contains("method")) return {};
  return fmt::format("note: every call ran dense: {}; see --explain", fmt::join(reasons, ", "));
}

}  // namespace lacuna::cli
