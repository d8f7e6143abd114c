// SPDX-License-Identifier: Apache-2.0
// lacuna replay: methods on recorded attention inputs.
#include "lacuna/calibrate/replay.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/options.h"
#include "cli/work.h"
#include "lacuna/core/error.h"

namespace lacuna::cli {
namespace {

struct ReplayOptions {
  MachineOptions machine;
  std::string file;
  std::vector<std::string> attention, skip;
  double density = 0.0, speedup = 0.0;
  int repeats = 3;
  bool json = false, quiet = false;
};

struct Table {
  std::string title;
  std::vector<ReplayRow> rows;
  std::vector<std::string> unreached;
};

using Find = std::function<std::optional<ReplayRow>(const ReplayCase&)>;

Table find_table(const std::string& title, const std::vector<ReplayCase>& list, const Find& find,
                 const std::function<void(const std::string&)>& next) {
  Table table{title, {}, {}};
  for (const ReplayCase& wanted : list) {
    next(wanted.name);
    if (auto row = find(wanted)) {
      table.rows.push_back(std::move(*row));
    } else {
      table.unreached.push_back(wanted.name);
    }
  }
  return table;
}

void print(const Table& table) {
  fmt::print("\n{}\n{:<34} {:>7} {:>7} {:>7} {:>9} {:>10} {:>10} {:>19} {:>8}  {}\n", table.title,
             "attention", "QK", "PV", "recall", "rel_l1", "select ms", "attend ms",
             "selection / dense %", "speed-up", "parameter");
  for (const ReplayRow& r : table.rows) {
    fmt::print(
        "{:<34} {:>7.3f} {:>7.3f} {:>7.4f} {:>9.2e} {:>10.2f} {:>10.2f} {:>19.1f} {:>7.2f}x  {}\n",
        r.name, r.qk_density, r.pv_density, r.recall, r.rel_l1, r.select_ms, r.attend_ms,
        100.0 * r.selection_share(), r.speedup(), r.parameter);
  }
  for (const std::string& name : table.unreached)
    fmt::print("{:<34} has no parameter that reaches it\n", name);
}

nlohmann::ordered_json to_json(const Table& table) {
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const ReplayRow& r : table.rows) {
    rows.push_back({{"attention", r.name},
                    {"parameter", r.parameter},
                    {"qk_density", r.qk_density},
                    {"pv_density", r.pv_density},
                    {"recall", r.recall},
                    {"rel_l1", r.rel_l1},
                    {"select_ms", r.select_ms},
                    {"attend_ms", r.attend_ms},
                    {"dense_ms", r.dense_ms},
                    {"selection_share", r.selection_share()},
                    {"speedup", r.speedup()}});
  }
  return {{"title", table.title}, {"rows", rows}, {"unreached", table.unreached}};
}

void run_replay(const ReplayOptions& o) {
  const auto backend = o.machine.open();
  const std::vector<ReplayCase> list = replay_cases(o.attention, o.skip);
  const Recording recording(o.file);
  const int rounds = 1 + (o.density > 0.0 ? 1 : 0) + (o.speedup > 0.0 ? 1 : 0);
  const int total = rounds * static_cast<int>(list.size());
  int done = 0;
  Work work(o.quiet);
  const auto next = [&](const std::string& name) { work.update("replay", done++, total, name); };
  std::vector<Table> tables;
  try {
    Replay replay(*backend, recording.calls(), o.repeats, check_interrupt);
    tables.push_back(find_table(
        "as given, means over the recorded calls", list,
        [&](const ReplayCase& c) { return replay.run(c); }, next));
    tables.front().rows.insert(tables.front().rows.begin(), replay.dense());
    if (o.density > 0.0)
      tables.push_back(find_table(
          fmt::format("at density {:.3g} (P V)", o.density), list,
          [&](const ReplayCase& c) { return replay.at_density(c, o.density); }, next));
    if (o.speedup > 0.0)
      tables.push_back(find_table(
          fmt::format("at speed-up {:.3g}, selection included", o.speedup), list,
          [&](const ReplayCase& c) { return replay.at_speedup(c, o.speedup); }, next));
  } catch (const Cancelled&) {
    work.end();
    throw Interrupted{"stopped; nothing was written"};
  }
  work.end();
  if (o.json) {
    nlohmann::ordered_json json = {{"calls", recording.calls().size()},
                                   {"backend", backend->description()}};
    for (const Table& table : tables) json["tables"].push_back(to_json(table));
    fmt::print("{}\n", json.dump(1));
    return;
  }
  const RecordedCall& first = recording.calls().front();
  fmt::print("{} calls, {} heads x {} tokens x {}, on {}\n", recording.calls().size(),
             first.q.shape[0], first.q.shape[1], first.q.shape[2], backend->description());
  for (const Table& table : tables) print(table);
}

}  // namespace

void add_replay(CLI::App& app) {
  auto* command = app.add_subcommand(
      "replay", "Compare methods on recorded q, k and v (lacuna generate --record)");
  command->group("Commands");
  auto o = std::make_shared<ReplayOptions>();
  command->add_option("recording", o->file, "File of lacuna generate --record")
      ->check(names_a_file())
      ->required();
  command
      ->add_option("-a,--attention", o->attention,
                   "METHOD[:name=value,...], several allowed; default: every method and skip rule")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->allow_extra_args(false);
  command->add_option("--skip", o->skip, "A skip rule without a mask, several allowed")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->allow_extra_args(false);
  command
      ->add_option("--density", o->density,
                   "Also compare at this share of computed pairs, searching each parameter")
      ->check(real_number(0.001, 1.0));
  command
      ->add_option("--speedup", o->speedup,
                   "Also compare at this speed-up of attention with its selection")
      ->check(real_number(0.1, 1000.0));
  command->add_option("--repeats", o->repeats, "Timed runs of every case; medians are shown")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_flag("--json", o->json, "Print one JSON object");
  command->add_flag("-q,--quiet", o->quiet, "Print no progress");
  o->machine.add_to(*command);
  command->callback([o] { run_replay(*o); });
}

}  // namespace lacuna::cli
