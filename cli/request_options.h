// SPDX-License-Identifier: Apache-2.0
// What decides a generation besides prompt and attention: sizes, sampler, guidance, seed.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "lacuna/models/pipeline/model.h"
#include "lacuna/models/pipeline/request.h"

namespace lacuna::cli {

// The pictures that a video begins and ends with.
struct PictureOptions {
  std::string first, last;

  void add_to(CLI::App& group);
  void fill(Request& request) const;  // with the content of the files
};

// Says in the request which LoRA the model has.
void name_lora(const Model& model, Request& request);

struct RequestOptions {
  std::optional<std::string> negative_prompt;
  std::optional<int> width, height, frames, steps, fps;
  std::string size;
  std::optional<double> guidance, guidance_low, guidance_high, embedded_guidance, shift, boundary;
  std::optional<int> high_noise_steps;
  std::optional<std::string> guide_scale;
  std::string sampler, high_noise_sampler, sigma_convention;
  std::vector<double> timesteps;
  bool timesteps_shifted = false;
  uint64_t seed = 0;
  PictureOptions pictures;

  void add_content_to(CLI::App& group);
  void add_sampling_to(CLI::App& command);
  // What was given, else the habits of the model. Prompt, dtype and attention are the caller's.
  // Throws UsageError on a malformed size.
  Request make(const Model& model) const;
};

}  // namespace lacuna::cli
