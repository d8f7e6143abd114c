// SPDX-License-Identifier: Apache-2.0
#include "cli/remake.h"

#include <fmt/format.h>

#include <utility>

#include "lacuna/core/error.h"
#include "lacuna/engine/json_object.h"
#include "lacuna/models/pipeline/sampling.h"
#include "lacuna/models/video/video_writer.h"

namespace lacuna::cli {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kCommand = "command";  // the one key of a comment that is no request
// What Linux passes to a program is less than a quarter of this, and quoting makes four bytes of
// one at most.
constexpr size_t kMaxCommand = size_t{32} << 20;

constexpr std::pair<const char*, const char*> kOptions[] = {
    {"prompt", "-p"},
    {"negative_prompt", "--negative-prompt"},
    {"image", "-i"},
    {"last_image", "--last-image"},
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
    {"embedded_guidance", "--embedded-guidance"},
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
  LACUNA_CHECK(comment.starts_with('{'), "{}: says nothing about how it was made", path.string());
  const Json json = parse_json(comment, path.string());
  if (json.contains(kCommand)) {
    std::string command =
        JsonObject(json, path.string(), {kCommand}, ' ').text(kCommand, kMaxCommand);
    LACUNA_CHECK(!command.empty(), "{} command: empty, expected how the clip was made",
                 path.string());
    return MadeBy{{}, 0, std::move(command)};
  }
  Request request = Request::from_json(comment, path.string() + " request");
  const int steps = request.sampler.num_steps;
  return MadeBy{std::move(request), steps};
}

std::string comment_of_command(const std::string& command) {
  const Json json = {{std::string(kCommand), command}};
  // Prompts come from command lines: bytes that are not UTF-8 become U+FFFD.
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::span<const std::pair<const char*, const char*>> options_of_keys() {
  return kOptions;
}

std::string lora_options(const Request& request) {
  std::string options;
  for (const auto& [option, words] : {std::pair("--lora", &request.lora),
                                      {"--lora-high", &request.lora_high},
                                      {"--lora-low", &request.lora_low}})
    for (const std::string& word : *words) options += fmt::format(" {} {}", option, quoted(word));
  return options;
}

std::string command_of(const Request& request) {
  const Json json = Json::parse(request.to_json());
  std::string command = "lacuna generate" + lora_options(request);
  for (const auto& [key, option] : kOptions) {
    if (!json.contains(key)) continue;  // such as the embedded guidance of networks without
    const auto& value = json.at(key);
    const std::string word = value.is_string() ? value.get<std::string>() : value.dump();
    // An empty negative prompt differs from none; other empty words say nothing.
    if (word.empty() && key != std::string_view("negative_prompt")) continue;
    // A profile or a mask log decides instead; the word is then the default.
    if (key == std::string_view("attention") &&
        !(request.profile.empty() && request.replay_masks.empty()))
      continue;
    command += fmt::format(" {} {}", option, quoted(word));
  }
  if (!request.tae.empty()) command += fmt::format(" --tae {}", quoted(request.tae));
  if (!request.sampler.timesteps.empty())
    command += fmt::format(" --timesteps {}", fmt::join(request.sampler.timesteps, ","));
  if (!request.sampler.warp_timesteps) command += " --timesteps-shifted";
  return command;
}

}  // namespace lacuna::cli
