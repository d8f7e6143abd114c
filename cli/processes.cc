// SPDX-License-Identifier: Apache-2.0
#include "cli/processes.h"

#include <fmt/format.h>

#include <chrono>
#include <optional>
#include <string_view>
#include <thread>

#include "cli/command.h"
#include "lacuna/parallel/world.h"

namespace lacuna::cli {
namespace {

std::optional<World>& world() {
  static std::optional<World> joined;
  return joined;
}

}  // namespace

void join_processes(int argc, char** argv) {
  const int count = launched_processes();
  if (count == 1) return;
  const auto word = [&](int i) { return i < argc ? std::string_view(argv[i]) : ""; };
  if (word(1) != "generate" && !(word(1) == "bench" && word(2) == "generate"))
    throw UsageError(
        fmt::format("one of {} processes: generate and bench generate run in several, this command "
                    "in one; start it without mpirun",
                    count));
  world().emplace();
}

Team* processes() {
  return world() ? &world()->team() : nullptr;
}

bool speaks() {
  return processes() == nullptr || processes()->is_root();
}

void in_turn(const std::function<void()>& body) {
  Team* const team = processes();
  if (team == nullptr) return body();
  for (int rank = 0; rank < team->size(); ++rank) {
    if (rank == team->rank()) body();
    std::byte done{};
    team->broadcast({&done, 1}, rank);
  }
}

void let_root_speak() {
  if (launched_rank() > 0) std::this_thread::sleep_for(std::chrono::seconds(5));
}

void leave_processes(int status) {
  if (!world()) return;
  if (status != 0) world()->abort(status);
  world().reset();
}

std::string describe(const WorkShare& share) {
  const Team* team = processes();
  return fmt::format("{} processes{}", team->size(),
                     share.forward_ranks() == team->size()
                         ? ""
                         : fmt::format(", {} for each branch of guidance", share.forward_ranks()));
}

}  // namespace lacuna::cli
