// SPDX-License-Identifier: Apache-2.0
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include "cli/command.h"
#include "cli/interrupt.h"
#include "cli/processes.h"
#include "cli/say.h"
#include "lacuna/core/error.h"
#include "lacuna/models/context.h"

namespace {

constexpr char kDescription[] =
    "Lacuna: video diffusion with training-free sparse attention.\n"
    "Generates video from Wan, Mochi and HunyuanVideo checkpoints, dense or sparse, and shows what "
    "that cost and saved.";

// Errors quote files: names of tensors, keys, whatever stands there.
void say_error(std::string_view what) {
  lacuna::cli::say_note(fmt::format("lacuna: {}", what));
}

// What is wrong with the command line, and which help lists what is right.
std::string usage_error(const CLI::App& app, const CLI::ParseError& error) {
  const CLI::App* command = &app;
  std::string name = app.get_name(), what = error.what();
  while (!command->get_subcommands().empty()) {
    command = command->get_subcommands().back();
    name += " " + command->get_name();
  }
  const std::vector<std::string> left = app.remaining(true);
  if (dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr)  // which says them last first
    what = fmt::format("not expected: {}", fmt::join(left, " "));
  else if (command->get_require_subcommand_min() > 0 && !left.empty())
    what = fmt::format("{}: no such {}", left.front(),
                       left.front().starts_with('-') ? "option" : "command");
  return fmt::format("{} (see {} --help)", what, name);
}

int run(int argc, char** argv) {
  CLI::App app(kDescription, "lacuna");
  app.set_version_flag("--version", "lacuna " LACUNA_VERSION);
  app.require_subcommand(1);
  // A repeated option overrides: people append to a command they have. Lists collect all instead.
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  app.get_formatter()->column_width(34);
  lacuna::cli::add_generate(app);
  lacuna::cli::add_decode(app);
  lacuna::cli::add_calibrate(app);
  lacuna::cli::add_replay(app);
  lacuna::cli::add_compare(app);
  lacuna::cli::add_inspect(app);
  lacuna::cli::add_tournament(app);
  lacuna::cli::add_doctor(app);
  lacuna::cli::add_info(app);
  lacuna::cli::add_methods(app);
  lacuna::cli::add_bench(app);
  lacuna::cli::add_verify(app);
  // Last: commands that are added later inherit it.
  app.footer("lacuna COMMAND --help lists the options of a command.");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const bool is_help = error.get_exit_code() == 0;
    if (!is_help) throw lacuna::cli::UsageError(usage_error(app, error));
    // Every process was asked for it, one gives it.
    return lacuna::cli::speaks() ? app.exit(error) : 0;
  }
  return 0;
}

// What was printed must have arrived: a full disk shows when the buffer is written.
int with_output_written(int status) {
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return status;
  std::fprintf(stderr, "lacuna: standard output: %s\n", std::strerror(errno));
  return 1;
}

int run_to_status(int argc, char** argv) {
  try {
    lacuna::cli::join_processes(argc, argv);
    return with_output_written(run(argc, argv));
  } catch (const lacuna::cli::Interrupted& interrupted) {
    lacuna::cli::let_root_speak();
    lacuna::cli::say_note(interrupted.message);
    return lacuna::cli::kExitInterrupted;
  } catch (const lacuna::cli::UsageError& error) {
    lacuna::cli::let_root_speak();
    say_error(error.what());
    return 2;
  } catch (const lacuna::Cancelled&) {  // of a command that has nothing to keep
    lacuna::cli::let_root_speak();
    std::fprintf(stderr, "stopped\n");
    return lacuna::cli::kExitInterrupted;
  } catch (const std::bad_alloc&) {
    lacuna::cli::let_root_speak();
    std::fprintf(stderr,
                 "lacuna: out of memory; try fewer frames, a smaller size or --dtype bf16\n");
  } catch (const std::exception& error) {
    lacuna::cli::let_root_speak();
    say_error(error.what());
  }
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  lacuna::cli::watch_interrupts();
  const int status = run_to_status(argc, argv);
  lacuna::cli::leave_processes(status);
  return status;
}
