// SPDX-License-Identifier: Apache-2.0
#include "cli/peer_options.h"

#include <fmt/format.h>

namespace lacuna::cli {
namespace {

struct Hint {
  const char* name;
  const char* about;
  bool has_value = false;
};

// About memory, speed or logging, so that leaving them out makes the same video.
constexpr Hint kHints[] = {
    {"--diffusion-fa", "Attention never holds its scores here"},
    {"--offload-to-cpu", "Weights stay in files or on the CPU; on a GPU see --max-memory"},
    {"--clip-on-cpu", "See --backend"},
    {"--vae-on-cpu", "See --backend"},
    {"-v,--verbose", "See --explain and --trace"},
    {"--offload_model", "As --offload-to-cpu", true},
    {"--t5_cpu", "See --backend"},
    {"--convert_model_dtype", "See --dtype"},
};

}  // namespace

void PeerOptions::add_to(CLI::App& command) {
  auto* group = command.add_option_group("Accepted for other programs' command lines");
  group->add_option("-M,--mode", mode, "vid_gen: what generate does")
      ->check(CLI::IsMember({"vid_gen"}));
  group->add_option("--task", task, "What the checkpoint says anyway")
      ->check(CLI::IsMember(
          {"t2v-1.3B", "t2v-14B", "t2v-A14B", "ti2v-5B", "i2v-14B", "i2v-A14B", "flf2v-14B"}));
  for (const Hint& hint : kHints) {
    CLI::Option* option =
        hint.has_value ? group->add_option(hint.name) : group->add_flag(hint.name);
    hints.push_back(option->description(hint.about));
  }
}

std::string PeerOptions::note() const {
  std::string names;
  for (const CLI::Option* hint : hints)
    if (hint->count() > 0) names += (names.empty() ? "" : ", ") + hint->get_name();
  return names.empty() ? names : fmt::format("note: {}: no effect here, see --help", names);
}

}  // namespace lacuna::cli
