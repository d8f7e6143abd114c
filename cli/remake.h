// SPDX-License-Identifier: Apache-2.0
// How a clip was made, read back from it.
#pragma once

#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "lacuna/models/pipeline/request.h"

namespace lacuna::cli {

struct MadeBy {
  Request request;
  int next_step = 0;      // of a latents file: steps that are done; of a clip: all of them
  std::string command{};  // of clips side by side (lacuna compare), which hold several requests
};

// Of a clip (is_video_name) or a latents file; nothing for any other file. Throws Error when it is
// one of these and lacks its settings, or when they are not what lacuna writes.
std::optional<MadeBy> made_by(const std::filesystem::path& path);

// The comment of such clips side by side, which made_by reads.
std::string comment_of_command(const std::string& command);

// Keys of Request::to_json and the options of lacuna generate that set them, but for `model` and
// the list of timesteps.
std::span<const std::pair<const char*, const char*>> options_of_keys();

// The options that give a request its LoRA, each behind a space, quoted for a shell.
std::string lora_options(const Request& request);

// The command that makes the same video with the same model, quoted for a shell. Everything that
// decides it is said, so that other defaults do not matter.
std::string command_of(const Request& request);

}  // namespace lacuna::cli
