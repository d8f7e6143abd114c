// SPDX-License-Identifier: Apache-2.0
// What a finished generation was: the head of its trace, and its manifest.
#pragma once

#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "lacuna/backend/backend.h"
#include "lacuna/engine/trace_file.h"
#include "lacuna/models/pipeline/generation.h"

namespace lacuna {

RunHeader run_header(Model& model, const Request& request, const Backend& backend,
                     const std::vector<std::string>& rules);

// FNV-1a over step, layer, expert and mask hash of the calls of one branch, or of all, in the order
// they ran: equal masks everywhere, equal hash.
uint64_t overall_mask_hash(std::span<const TraceEntry> calls, std::optional<Branch> branch);

// The header, then masks, density, seconds and the size of `output` (a video, or latents). Format:
// docs/formats.md.
Json manifest_json(const RunHeader& header, const GenerationResult& result,
                   const std::filesystem::path& output);

}  // namespace lacuna
