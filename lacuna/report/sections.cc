// SPDX-License-Identifier: Apache-2.0
#include "lacuna/report/sections.h"

namespace lacuna {

Json table_section(std::string_view title, std::string_view note,
                   std::initializer_list<Column> columns, Json rows) {
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

std::string base64(std::span<const uint8_t> bytes) {
  constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const auto at = [&](size_t n) { return i + n < bytes.size() ? uint32_t{bytes[i + n]} : 0u; };
    const uint32_t word = at(0) << 16 | at(1) << 8 | at(2);
    text += kDigits[word >> 18];
    text += kDigits[word >> 12 & 63];
    text += i + 1 < bytes.size() ? kDigits[word >> 6 & 63] : '=';
    text += i + 2 < bytes.size() ? kDigits[word & 63] : '=';
  }
  return text;
}

}  // namespace lacuna
