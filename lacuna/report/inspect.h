// SPDX-License-Identifier: Apache-2.0
// What a run left behind, as report data: a trace, a mask log, a profile, recorded q, k and v.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <span>

#include "lacuna/backend/backend.h"

namespace lacuna {

// The report of these files, each told by its content; a trace and a mask log of one run are
// shown together. The backend computes the block mass of recordings. Throws Error naming the file
// that is none of them or broken, and when two files are of different runs.
nlohmann::ordered_json inspect(std::span<const std::filesystem::path> files, Backend& backend);

}  // namespace lacuna
