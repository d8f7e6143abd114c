// SPDX-License-Identifier: Apache-2.0
// Report data as text for a terminal.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace lacuna {

// Figures beside tables and prose: heatmaps in aligned columns, bars as bars, the others by name
// with the page that shows them.
enum class ReportFigures : uint8_t { omit, draw };

// Title, settings, sections and, last, where the eye is then, the summary. Rows of the noise floor
// stand apart. What strangers wrote, such as a prompt, is escaped and on one line (one_line).
std::string report_text(const nlohmann::ordered_json& report, ReportFigures figures);

}  // namespace lacuna
