// SPDX-License-Identifier: Apache-2.0
// Options that several subcommands share, and what they turn into.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/output_files.h"
#include "lacuna/backend/backend.h"
#include "lacuna/models/context.h"
#include "lacuna/models/pipeline/model.h"
#include "lacuna/models/pipeline/request.h"
#include "lacuna/models/vae/video_decoder.h"

namespace lacuna::cli {

// Where it computes.
struct MachineOptions {
  std::string backend;
  int threads = 0;  // 0 = LACUNA_THREADS, else what the runtime sees
  void add_to(CLI::App& command);
  std::unique_ptr<Backend> open() const;
};

// Which checkpoint.
struct ModelOptions {
  std::vector<std::string> paths;
  // Single files in stable-diffusion.cpp's words.
  std::string high_noise, vae, tae, text_encoder, pooled_encoder, image_encoder;
  std::string synthetic;
  std::vector<std::string> lora, lora_high, lora_low;  // FILE[:SCALE]
  std::string dtype = "bf16";
  void add_to(CLI::App& command);
  bool is_default() const;  // nothing was named: the small model that ships, perhaps with LoRA
  bool has_lora() const;
  // With its LoRA. Throws UsageError when one of the files that the command will write is the
  // model's, and on LoRA for one expert of a model that has no two.
  std::unique_ptr<Model> open(const std::vector<NamedFile>& outputs = {}) const;

 private:
  void add_loras(Model& model) const;
};

// Which policy of attention.
struct AttentionOptions {
  std::string attention = "dense", skip, profile, dense_steps, dense_layers;
  int64_t min_tokens = 0;
  void add_to(CLI::App& command);
  void fill(Request& request) const;
};

// How latents become a file.
struct DecodeSettings {
  std::string tile = "off";
  std::optional<int> tile_size, tile_stride;
  void add_to(CLI::App& command);
  // Throws UsageError on a size or stride that the mode does not have.
  Tiling tiling() const;
};

// Of options that name files: an empty word, such as an unset "$OUT", would mean not given.
CLI::Validator names_a_file();

// Of every option that is a real number: neither nan nor an infinity, from `low` to `high`. What is
// counted, as in "GB", is named in the message.
CLI::Validator real_number(double low = std::numeric_limits<double>::lowest(),
                           double high = std::numeric_limits<double>::max(),
                           const std::string& counted = {});

// Where prompt embeddings are kept between runs; empty when there is no home folder.
std::filesystem::path prompt_cache_folder();

}  // namespace lacuna::cli
