// SPDX-License-Identifier: Apache-2.0
#include "cli/remake.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <utility>

#include "lacuna/core/error.h"
#include "lacuna/models/pipeline/sampling.h"
#include "lacuna/models/video/video_writer.h"

namespace lacuna::cli {
namespace {

namespace fs = std::filesystem;

// Keys of Request::to_json and the options that set them, but for `model` and the list of
// timesteps.
constexpr std::pair<const char*, const char*> kOptions[] = {
    {"prompt", "-p"},
    {"negative_prompt", "--negative-prompt"},
    {"width", "-W"},
    {"height", "-H"},
    {"frames", "--frames"},
    {"fps", "--fps"},
    {"sampler", "--sampler"},
    {"sigma_convention", "--sigma-convention"},
    {"steps", "--steps"},
    {"shift", "--shift"},
    {"guidance", "--guidance"},
    {"guidance_low", "--guidance-low"},
    {"boundary", "--boundary"},
    {"seed", "--seed"},
    {"dtype", "--dtype"},
    {"attention", "-a"},
    {"skip", "--skip"},
    {"profile", "--profile"},
    {"replay_masks", "--replay-masks"},
    {"dense_steps", "--dense-steps"},
    {"dense_layers", "--dense-layers"},
    {"min_tokens", "--min-tokens"},
};

std::string quoted(const std::string& word) {
  constexpr std::string_view kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.,:=/+%";
  if (!word.empty() && word.find_first_not_of(kPlain) == std::string::npos) return word;
  std::string out = "'";
  for (const char c : word) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

}  // namespace

std::optional<MadeBy> made_by(const fs::path& path) {
  std::error_code none;
  if (!fs::is_regular_file(path, none)) return {};
  if (is_latents_file(path)) {
    LoadedState loaded = load_state(path);
    return MadeBy{std::move(loaded.request), loaded.state.next_step};
  }
  if (!is_video_name(path)) return {};
  const std::string comment = read_video_comment(path);
  const bool several = !comment.starts_with('{') && comment.find(" compare ") != std::string::npos;
  if (several) return MadeBy{{}, 0, comment};
  LACUNA_CHECK(comment.starts_with('{'), "{}: says nothing about how it was made", path.string());
  Request request = Request::from_json(comment);
  const int steps = request.sampler.num_steps;
  return MadeBy{std::move(request), steps};
}

std::string command_of(const Request& request) {
  const auto json = nlohmann::ordered_json::parse(request.to_json());
  std::string command = "lacuna generate";
  for (const auto& [key, option] : kOptions) {
    const auto& value = json.at(key);
    const std::string word = value.is_string() ? value.get<std::string>() : value.dump();
    // An empty negative prompt differs from none; other empty words say nothing.
    if (word.empty() && key != std::string_view("negative_prompt")) continue;
    command += fmt::format(" {} {}", option, quoted(word));
  }
  if (!request.sampler.timesteps.empty())
    command += fmt::format(" --timesteps {}", fmt::join(request.sampler.timesteps, ","));
  if (!request.sampler.warp_timesteps) command += " --timesteps-shifted";
  return command;
}

}  // namespace lacuna::cli
