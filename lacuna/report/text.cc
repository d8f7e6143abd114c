// SPDX-License-Identifier: Apache-2.0
#include "lacuna/report/text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <vector>

#include "lacuna/core/printable.h"

namespace lacuna {
namespace {

using Json = nlohmann::ordered_json;
using Cells = std::vector<std::vector<std::string>>;

constexpr size_t kMaxMapColumns = 26;

std::string line_text(const Json& text) {
  return one_line(text.get<std::string>()) + "\n";
}

// A loss may be far below what its digits can show.
std::string number_text(double value, int digits) {
  const bool vanishes = value != 0.0 && std::abs(value) < 0.5 * std::pow(10.0, -digits);
  return vanishes ? fmt::format("{:.1e}", value) : fmt::format("{:.{}f}", value, digits);
}

std::string cell_text(const Json& value, int digits) {
  if (value.is_null()) return "-";
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number_float()) return number_text(value.get<double>(), digits);
  return value.dump();
}

// "PSNR dB"; of a spread beside it only "sd", "min" or "max".
std::string head_text(const Json& column) {
  const std::string key = column["key"], unit = column.value("unit", "");
  for (const std::string spread : {"sd", "min", "max"})
    if (key.ends_with("_" + spread)) return spread;
  return column["name"].get<std::string>() + (unit.empty() ? "" : " " + unit);
}

// Columns as wide as their widest cell; the first row is the head.
std::string aligned(Cells rows, const std::vector<bool>& left) {
  std::vector<size_t> widths;
  for (auto& row : rows)
    for (std::string& cell : row) cell = one_line(cell);
  for (const auto& row : rows)
    for (size_t c = 0; c < row.size(); ++c) {
      if (c == widths.size()) widths.push_back(0);
      widths[c] = std::max(widths[c], row[c].size());
    }
  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (size_t c = 0; c < row.size(); ++c)
      line += left[c] ? fmt::format("{:<{}}  ", row[c], widths[c])
                      : fmt::format("{:>{}}  ", row[c], widths[c]);
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  }
  return text;
}

std::string table_text(const Json& section) {
  const Json& columns = section["columns"];
  Cells cells(1);
  std::vector<bool> left;
  for (const Json& column : columns) {
    cells[0].push_back(head_text(column));
    const std::string key = column["key"];
    left.push_back(
        std::none_of(section["rows"].begin(), section["rows"].end(),
                     [&](const Json& row) { return row.contains(key) && row[key].is_number(); }));
  }
  bool floor = false;
  for (const Json& row : section["rows"]) {
    if (!floor && row.contains("floor")) {
      cells.push_back(std::vector<std::string>(columns.size()));
      cells.back()[0] = "noise floor:";
      left[0] = floor = true;
    }
    cells.emplace_back();
    for (const Json& column : columns) {
      const std::string key = column["key"];
      cells.back().push_back(row.contains(key) ? cell_text(row[key], column.value("digits", 2))
                                               : "-");
    }
  }
  return aligned(cells, left);
}

// Every n-th column where all do not fit.
std::string heatmap_text(const Json& section) {
  const Json &columns = section["columns"]["labels"], &rows = section["rows"]["labels"];
  const size_t every = (columns.size() + kMaxMapColumns - 1) / kMaxMapColumns;
  Cells cells(1);
  cells[0].push_back(section["rows"]["name"].get<std::string>() + " \\ " +
                     section["columns"]["name"].get<std::string>());
  for (size_t c = 0; c < columns.size(); c += every) cells[0].push_back(columns[c]);
  for (size_t r = 0; r < rows.size(); ++r) {
    cells.push_back({rows[r].get<std::string>()});
    for (size_t c = 0; c < columns.size(); c += every)
      cells.back().push_back(cell_text(section["values"][r][c], 2));
  }
  return aligned(cells, std::vector<bool>(cells[0].size()));
}

std::string bars_text(const Json& section) {
  constexpr double kWidth = 40.0;
  const Json &names = section["categories"], &series = section["series"];
  constexpr char kMarks[] = "=#+*";
  double longest = 1e-30;
  for (size_t i = 0; i < names.size(); ++i) {
    double sum = 0.0;
    for (const Json& one : series) sum += one["values"][i].get<double>();
    longest = std::max(longest, sum);
  }
  Cells cells(1, {"", section["unit"].get<std::string>(), ""});
  for (size_t s = 0; s < series.size(); ++s)
    cells[0][2] += fmt::format("{} {}  ", kMarks[s % 4], series[s]["name"].get<std::string>());
  for (size_t i = 0; i < names.size(); ++i) {
    double sum = 0.0;
    std::string bar;
    for (size_t s = 0; s < series.size(); ++s) {
      const double value = series[s]["values"][i].get<double>();
      sum += value;
      bar.resize(static_cast<size_t>(sum / longest * kWidth + 0.5), kMarks[s % 4]);
    }
    cells.push_back({names[i].get<std::string>(), fmt::format("{:.1f}", sum), bar});
  }
  return aligned(cells, {true, false, true});
}

std::string section_text(const Json& section) {
  const std::string kind = section["kind"];
  if (kind == "table") return table_text(section);
  if (kind == "heatmap") return heatmap_text(section);
  if (kind == "bars") return bars_text(section);
  if (kind == "text") {
    std::string text;
    for (const Json& paragraph : section["paragraphs"]) text += line_text(paragraph);
    return text;
  }
  return "Shown by the page: --report out.html\n";
}

}  // namespace

std::string report_text(const Json& report, ReportFigures figures) {
  std::string text = line_text(report["title"]);
  for (const auto& [key, value] : report["settings"].items())
    text += fmt::format("  {:<14} {}\n", one_line(key), one_line(cell_text(value, 4)));
  for (const Json& section : report["sections"]) {
    const std::string kind = section["kind"];
    if (figures == ReportFigures::omit && kind != "table" && kind != "text") continue;
    text += "\n" + line_text(section["title"]);
    if (section.contains("note")) text += line_text(section["note"]);
    text += section_text(section);
  }
  return text + "\n" + line_text(report["summary"]);
}

}  // namespace lacuna
