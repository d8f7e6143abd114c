// SPDX-License-Identifier: Apache-2.0
#include "lacuna/report/page.h"

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "lacuna/core/atomic_file.h"
#include "lacuna/core/error.h"

namespace lacuna {

// Texts of lacuna/report/page/, made by lacuna_embed_text.
std::string_view report_page_html();
std::string_view report_page_css();
std::string_view report_base_js();
std::string_view report_chart_js();
std::string_view report_table_js();
std::string_view report_series_js();
std::string_view report_heatmap_js();
std::string_view report_front_js();
std::string_view report_sequence_js();
std::string_view report_masks_js();
std::string_view report_player_js();
std::string_view report_main_js();

namespace {

// JSON inside a script element: `<` neither ends it nor opens a comment there. The two line
// separators are legal in JSON but not in older JavaScript.
std::string script_safe(const std::string& json) {
  std::string safe;
  safe.reserve(json.size());
  for (size_t i = 0; i < json.size(); ++i) {
    if (json[i] == '<') {
      safe += "\\u003c";
    } else if (json.compare(i, 3, "\xe2\x80\xa8") == 0 || json.compare(i, 3, "\xe2\x80\xa9") == 0) {
      safe += json[i + 2] == '\xa8' ? "\\u2028" : "\\u2029";
      i += 2;
    } else {
      safe += json[i];
    }
  }
  return safe;
}

// What stands in the template between `from` and the next {{mark}}; `from` moves behind the mark.
std::string_view up_to(std::string_view mark, size_t& from) {
  const std::string_view html = report_page_html();
  const size_t at = html.find(mark, from);
  LACUNA_CHECK(at != std::string_view::npos, "page.html: no {}, expected one", mark);
  const std::string_view part = html.substr(from, at - from);
  from = at + mark.size();
  return part;
}

}  // namespace

void write_report(const std::filesystem::path& path, const nlohmann::ordered_json& report) {
  // Prompts come from command lines: bytes that are not UTF-8 become U+FFFD instead of no page.
  const std::string data =
      script_safe(report.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
  AtomicFile file(path);
  size_t at = 0;
  file.write(up_to("{{css}}", at));
  file.write(report_page_css());
  file.write(up_to("{{data}}", at));
  file.write(data);
  file.write(up_to("{{script}}", at));
  for (const auto& script :
       {report_base_js(), report_chart_js(), report_table_js(), report_series_js(),
        report_heatmap_js(), report_front_js(), report_sequence_js(), report_masks_js(),
        report_player_js(), report_main_js()}) {
    file.write(script);
  }
  file.write(report_page_html().substr(at));
  file.commit();
}

}  // namespace lacuna
