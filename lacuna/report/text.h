// SPDX-License-Identifier: Apache-2.0
// Report data as text for a terminal.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace lacuna {

// Title, summary and sections. Tables and heatmaps in aligned columns, bars as bars; pictures are
// named with the page that shows them.
std::string report_text(const nlohmann::ordered_json& report);

}  // namespace lacuna
