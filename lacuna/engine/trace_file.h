// SPDX-License-Identifier: Apache-2.0
// A trace on disk, and the head it shares with a run's manifest.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "lacuna/engine/json_object.h"
#include "lacuna/engine/profile.h"
#include "lacuna/engine/trace.h"

namespace lacuna {

// A call as the files have it: one JSON object.
Json call_json(const TraceEntry& call);
// The way back. Throws Error naming `path` where the JSON is no such object.
TraceEntry parse_call(const Json& json, const std::string& path, int num_rules = kMaxIndex);

// What a finished run was.
struct RunHeader {
  std::string version, date;       // of lacuna; ISO 8601, UTC
  Json machine = Json::object();   // flat: text and numbers
  Json request = Json::object();   // what decides the video
  ProfileTarget target;            // model, grid and schedule
  std::vector<std::string> rules;  // of the policy, in words; TraceEntry::rule counts them
};

// Names a run by RunHeader::request: 16 hex digits. Files of runs with another seed or prompt
// differ in it where nothing that attention did would tell.
std::string run_name(const Json& request);

// One JSON object with the members of the header, for a file that adds its own.
Json header_json(const RunHeader& header);

struct TraceFile {
  RunHeader header;
  std::vector<TraceEntry> calls;
};

// Writes one JSON object, atomically: `lacuna_trace` (the version), the header, `calls` with one
// call per line. mask_hash is a hex string: JSON numbers lose bits. Format: docs/formats.md.
void save_trace(const std::filesystem::path& path, const RunHeader& header, const Trace& trace);
// Reads a file that may be hostile. Throws Error naming file and JSON path on: not JSON, larger
// than 256 MiB, another version, an unknown key, a wrong type, a value out of range.
TraceFile load_trace(const std::filesystem::path& path);

}  // namespace lacuna
