// SPDX-License-Identifier: Apache-2.0
// Where and how a report was made.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "lacuna/backend/backend.h"

namespace lacuna {

// The `machine` object of a report: cpu (its name), backend, isa (what the backend says it uses),
// threads, version, date (UTC, ISO 8601).
nlohmann::ordered_json machine_info(const Backend& backend);

// How this process was called, quoted for a shell; the program without its folder.
std::string command_line();

}  // namespace lacuna
