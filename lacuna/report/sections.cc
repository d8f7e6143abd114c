// SPDX-License-Identifier: Apache-2.0
#include "lacuna/report/sections.h"

#include "lacuna/report/machine_info.h"

namespace lacuna {

Json make_report(std::string_view title, std::string_view summary, Json machine, Json settings,
                 Json sections) {
  return {{"lacuna_report", 1},
          {"command", command_line()},
          {"title", title},
          {"summary", summary},
          {"machine", std::move(machine)},
          {"settings", std::move(settings)},
          {"sections", std::move(sections)}};
}

Json table_section(std::string_view title, std::string_view note,
                   const std::vector<Column>& columns, Json rows) {
  Json json = {{"kind", "table"}, {"title", title}, {"note", note}};
  json["columns"] = Json::array();
  for (const Column& column : columns) {
    Json one = {{"key", column.key}, {"name", column.name}, {"digits", column.digits}};
    if (!column.unit.empty()) one["unit"] = column.unit;
    if (!column.help.empty()) one["help"] = column.help;
    json["columns"].push_back(std::move(one));
  }
  json["rows"] = std::move(rows);
  return json;
}

Json text_section(std::string_view title, std::vector<std::string> paragraphs) {
  return {{"kind", "text"}, {"title", title}, {"paragraphs", std::move(paragraphs)}};
}

Json heatmap_section(std::string_view title, std::string_view note, std::string_view rows,
                     const std::vector<std::string>& row_labels, std::string_view columns,
                     const std::vector<std::string>& column_labels, Json values,
                     std::string_view unit) {
  Json json = {{"kind", "heatmap"}, {"title", title}, {"note", note}};
  json["rows"] = {{"name", rows}, {"labels", row_labels}};
  json["columns"] = {{"name", columns}, {"labels", column_labels}};
  json["values"] = std::move(values);
  json["unit"] = unit;
  json["min"] = 0;
  json["max"] = 1;
  return json;
}

Json time_bars_section(std::string_view title, std::string_view note,
                       const std::vector<std::string>& categories,
                       const std::vector<double>& selection, const std::vector<double>& attention) {
  return {{"kind", "bars"},
          {"title", title},
          {"note", note},
          {"unit", "ms"},
          {"categories", categories},
          {"series",
           {{{"name", "selection"}, {"values", selection}},
            {{"name", "attention"}, {"values", attention}}}}};
}

}  // namespace lacuna
