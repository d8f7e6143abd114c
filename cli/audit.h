// SPDX-License-Identifier: Apache-2.0
// What a generation writes down about itself, and what it promises.
#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "lacuna/engine/mask_log.h"
#include "lacuna/models/pipeline/generation.h"

namespace lacuna::cli {

struct AuditOptions {
  std::string trace, save_masks, replay_masks, manifest;
  bool strict = false, explain = false, dry_run = false;
  void add_to(CLI::App& command);
};

class Audit {
 public:
  // Adds its hooks. Throws Error when a file cannot be written: better known now than after the
  // run. The options must outlive the object.
  Audit(const AuditOptions& options, Model& model, const Request& request, GenerationHooks& hooks);
  // Writes the files that were asked for; `output` is what the run made.
  void save(const GenerationResult& result, Model& model, const Request& request,
            const Backend& backend, const std::filesystem::path& output) const;

 private:
  const AuditOptions& options_;
  std::optional<MaskRecorder> masks_;
};

// What ran where and why: a table for people, an array for programs. Of a plan, which has no masks
// yet, without densities and counts.
std::string explain_text(const GenerationResult& result, bool planned);
nlohmann::ordered_json explain_json(const GenerationResult& result, bool planned);
// Which rules made every call dense, for a person; empty where the method ran.
std::string why_all_dense(const Trace& trace);

}  // namespace lacuna::cli
