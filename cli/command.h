// SPDX-License-Identifier: Apache-2.0
// One subcommand per file; main.cc lists them.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

namespace lacuna::cli {

// Each adds its subcommand to `app` and runs it from its callback. Errors are thrown; main prints
// them.
void add_generate(CLI::App& app);
void add_decode(CLI::App& app);
void add_calibrate(CLI::App& app);
void add_replay(CLI::App& app);
void add_compare(CLI::App& app);
void add_inspect(CLI::App& app);
void add_tournament(CLI::App& app);
void add_doctor(CLI::App& app);
void add_info(CLI::App& app);
void add_methods(CLI::App& app);
void add_bench(CLI::App& app);
void add_verify(CLI::App& app);

// Exit statuses beside 0 (done), 1 (failed), 2 (bad usage).
inline constexpr int kExitInterrupted = 130;

// Thrown after a Ctrl-C once everything worth keeping is saved; main exits 130.
struct Interrupted {
  std::string message;
};

// A mistake in how the command was called, found after parsing: one line and exit 2.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace lacuna::cli
