// SPDX-License-Identifier: Apache-2.0
#include "cli/print_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

namespace lacuna::cli {
namespace {

// A loss may be far below what its digits can show.
std::string number(double value, int digits) {
  const bool vanishes = value != 0.0 && std::abs(value) < 5.0 * std::pow(10.0, -digits - 1);
  return vanishes ? fmt::format("{:.1e}", value) : fmt::format("{:.{}f}", value, digits);
}

std::string cell(const Json& row, const Json& column) {
  const auto value = row.find(column["key"].get<std::string>());
  if (value == row.end() || value->is_null()) return "-";
  if (value->is_string()) return value->get<std::string>();
  if (value->is_number()) return number(value->get<double>(), column.value("digits", 3));
  return value->dump();
}

void print_table(const Json& section) {
  const Json& columns = section["columns"];
  std::vector<std::vector<std::string>> lines(1);
  for (const Json& column : columns) {
    const std::string unit = column.value("unit", "");
    lines.front().push_back(column["name"].get<std::string>() + (unit.empty() ? "" : " " + unit));
  }
  std::vector<bool> text(columns.size(), true);  // left aligned
  for (const Json& row : section["rows"]) {
    lines.emplace_back();
    for (size_t i = 0; i < columns.size(); ++i) {
      lines.back().push_back(cell(row, columns[i]));
      const auto value = row.find(columns[i]["key"].get<std::string>());
      if (value != row.end() && value->is_number()) text[i] = false;
    }
  }
  std::vector<size_t> width(columns.size(), 0);
  for (const auto& line : lines)
    for (size_t i = 0; i < line.size(); ++i) width[i] = std::max(width[i], line[i].size());
  for (const auto& line : lines) {
    std::string out;
    for (size_t i = 0; i < line.size(); ++i)
      out += text[i] ? fmt::format("{:<{}}  ", line[i], width[i])
                     : fmt::format("{:>{}}  ", line[i], width[i]);
    out.erase(out.find_last_not_of(' ') + 1);
    fmt::print("{}\n", out);
  }
}

}  // namespace

void print_report(const Json& report) {
  for (const Json& section : report["sections"]) {
    const std::string kind = section["kind"];
    if (kind == "text") {
      for (const Json& paragraph : section["paragraphs"])
        fmt::print("{}\n", paragraph.get<std::string>());
    } else if (kind == "table") {
      fmt::print("\n{}\n", section["title"].get<std::string>());
      print_table(section);
      if (section.contains("note")) fmt::print("{}\n", section["note"].get<std::string>());
    }
  }
}

}  // namespace lacuna::cli
