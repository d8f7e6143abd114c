// SPDX-License-Identifier: Apache-2.0
// Pieces of report data (docs/formats.md, "Report").
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace lacuna {

using Json = nlohmann::ordered_json;

struct Column {
  std::string_view key, name, unit, help;
  int digits = 0;
};

Json table_section(std::string_view title, std::string_view note,
                   std::initializer_list<Column> columns, Json rows);
Json text_section(std::string_view title, std::vector<std::string> paragraphs);
// values[row][column]; null where nothing was measured.
Json heatmap_section(std::string_view title, std::string_view note, std::string_view rows,
                     const std::vector<std::string>& row_labels, std::string_view columns,
                     const std::vector<std::string>& column_labels, Json values,
                     std::string_view unit);

}  // namespace lacuna
