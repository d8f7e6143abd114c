// SPDX-License-Identifier: Apache-2.0
// A report and its pieces as data (docs/formats.md, "Report").
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace lacuna {

using Json = nlohmann::ordered_json;

// The report itself, made by this process. `machine` as machine_info() gives it.
Json make_report(std::string_view title, std::string_view summary, Json machine, Json settings,
                 Json sections);

struct Column {
  std::string key, name, unit, help;
  int digits = 0;
};

Json table_section(std::string_view title, std::string_view note,
                   const std::vector<Column>& columns, Json rows);
Json text_section(std::string_view title, std::vector<std::string> paragraphs);
// values[row][column]; null where nothing was measured.
Json heatmap_section(std::string_view title, std::string_view note, std::string_view rows,
                     const std::vector<std::string>& row_labels, std::string_view columns,
                     const std::vector<std::string>& column_labels, Json values,
                     std::string_view unit);
// Selection and attention, one value for each category, ms.
Json time_bars_section(std::string_view title, std::string_view note,
                       const std::vector<std::string>& categories,
                       const std::vector<double>& selection, const std::vector<double>& attention);

}  // namespace lacuna
