// SPDX-License-Identifier: Apache-2.0
// lacuna inspect: what a run left behind.
#include "lacuna/report/inspect.h"

#include <fmt/format.h>

#include "cli/command.h"
#include "cli/options.h"
#include "cli/output_files.h"
#include "cli/say.h"
#include "lacuna/engine/profile.h"
#include "lacuna/report/page.h"
#include "lacuna/report/text.h"

namespace lacuna::cli {
namespace {

struct InspectOptions {
  MachineOptions machine;
  std::vector<std::string> files;
  std::string report;
  bool json = false;
};

void check_report_file(const InspectOptions& o) {
  if (o.report.empty()) return;
  std::vector<NamedFile> inputs;
  for (const std::string& file : o.files) {
    inputs.push_back({"files", file});
    inputs.push_back({"the profile's masks", named_masks_file(file)});
  }
  check_files_differ({{"--report", o.report}}, inputs);
}

void run_inspect(const InspectOptions& o) {
  check_report_file(o);
  const auto backend = o.machine.open();
  const std::vector<std::filesystem::path> files(o.files.begin(), o.files.end());
  const nlohmann::ordered_json report = inspect(files, *backend);
  if (!o.report.empty()) write_report(o.report, report);
  if (o.json) {
    fmt::print("{}\n",
               report.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
  } else if (o.report.empty()) {
    say("{}", report_text(report, ReportFigures::draw));
  } else {
    say("{}: {}\n", one_line(o.report), one_line(report["summary"].get<std::string>()));
  }
}

}  // namespace

void add_inspect(CLI::App& app) {
  auto* command = app.add_subcommand(
      "inspect", "Look at a trace, a mask log, a profile or recorded q, k and v");
  command->group("Commands");
  auto o = std::make_shared<InspectOptions>();
  command
      ->add_option("files", o->files,
                   "Files of generate --trace, --save-masks or --record, or a profile; a trace and "
                   "a mask log of one run are shown together")
      ->check(names_a_file())
      ->required()
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  command->add_flag("--json", o->json, "Print the report's data as one JSON object");
  command->add_option("--report", o->report, "Write a page with pictures of the masks (.html)")
      ->check(names_a_file());
  o->machine.add_to(*command);
  command->callback([o] { run_inspect(*o); });
}

}  // namespace lacuna::cli
