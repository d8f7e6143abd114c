// SPDX-License-Identifier: Apache-2.0
// One self-contained HTML page from the data of a command.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>

namespace lacuna {

// Writes `report` as a page that needs no network and no other file; the data is embedded
// unchanged. Fields: docs/formats.md, "Report". The file is complete or absent. Throws Error when
// it cannot be written.
void write_report(const std::filesystem::path& path, const nlohmann::ordered_json& report);

}  // namespace lacuna
