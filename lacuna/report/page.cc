// SPDX-License-Identifier: Apache-2.0
#include "lacuna/report/page.h"

#include <nlohmann/json.hpp>
#include <string>

#include "lacuna/core/atomic_file.h"

namespace lacuna {
namespace {

// JSON inside a script element: `<` never opens a tag there.
std::string script_safe(const std::string& json) {
  std::string safe;
  safe.reserve(json.size());
  for (const char c : json) {
    if (c == '<') {
      safe += "\\u003c";
    } else {
      safe += c;
    }
  }
  return safe;
}

}  // namespace

void write_report(const std::filesystem::path& path, const nlohmann::ordered_json& report) {
  AtomicFile file(path);
  file.write(
      "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">\n<script "
      "type=\"application/json\" id=\"report-data\">");
  file.write(script_safe(report.dump()));
  file.write("</script>\n</html>\n");
  file.commit();
}

}  // namespace lacuna
