// SPDX-License-Identifier: Apache-2.0
// What lies at a path: which files hold which part of a checkpoint. Only names and headers are
// read here; weights are opened later (open_weights).
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lacuna/models/tensor_set.h"

namespace lacuna {

enum class CheckpointLayout : uint8_t {
  diffusers,  // folder with model_index.json
  original,   // folder as the authors publish it, or any folder of weight files
  files,      // files given one by one
};

struct CheckpointPart {
  TensorSet tensors = TensorSet::unknown;
  std::vector<std::filesystem::path> files;  // all shards; empty = the part is absent
  std::filesystem::path config_file;         // config.json beside the files, or empty
  std::string config_text;                   // its content, which parses as a JSON object
  std::optional<nlohmann::json> config;      // the same, parsed

  bool empty() const { return files.empty(); }
};

struct Checkpoint {
  CheckpointLayout layout = CheckpointLayout::files;
  std::filesystem::path root;  // the folder, or the first file
  std::optional<nlohmann::json> model_index;
  CheckpointPart transformer;    // the only or high-noise network
  CheckpointPart transformer_2;  // the low-noise network of a two-expert model
  CheckpointPart vae;
  CheckpointPart tiny_decoder;  // makes the picture instead; only of a file that was given
  CheckpointPart text_encoder;
  CheckpointPart pooled_encoder;  // the second text encoder, one row per prompt (HunyuanVideo)
  CheckpointPart image_encoder;   // CLIP's vision encoder (image-to-video of Wan 2.1)
  // image_processor/preprocessor_config.json of a diffusers folder, and its content; or empty.
  std::filesystem::path image_processor;
  std::string image_processor_text;
  // tokenizer.json or spiece.model; or the text encoder's own file when it embeds one (GGUF
  // tokenizer.ggml.*, safetensors tensor `spiece_model`). Empty when there is none.
  std::filesystem::path tokenizer;
  // Of the second encoder: tokenizer.json, or vocab.json with merges.txt beside it.
  std::filesystem::path pooled_tokenizer;
  std::optional<nlohmann::json> scheduler;  // scheduler_config.json
};

// Finds the parts. `paths`: at most one folder (diffusers or original layout), and files that add
// parts or replace the folder's: weights in any order, shard by shard or as an index.json, and
// tokenizer.json / *.model. Two transformer files are told apart by `high` and `low` in their
// names, else high-noise comes first. Parts may stay absent, but one whose only file is a pickle
// (.pth, .bin) is an error that says how to go on. Throws Error naming the path for: nothing found,
// two candidates for one part, a file given twice, missing shards, malformed JSON, shard names that
// leave the folder, tensors this library does not compute (VSA gates, SLA projections, image, audio
// and control conditioning, VACE, camera and frame-rate embeddings, LoRA), each by name.
Checkpoint find_checkpoint(std::span<const std::filesystem::path> paths);

// Every file that these parts come from: weights and the index of their shards, settings,
// tokenizer. Each once; not all need exist.
std::vector<std::filesystem::path> checkpoint_files(const Checkpoint& checkpoint);

// "transformer a.safetensors, VAE b.gguf", so that an error about a missing part tells what the
// files that were given hold.
std::string list_parts(const Checkpoint& checkpoint);

// JSON of a hostile file: nesting at most 64. Throws Error naming `who`.
nlohmann::json parse_config_json(std::string_view text, std::string_view who);

// The distinct file names in `weight_map` of a *.index.json, sorted. Plain names ending in
// .safetensors only: a path would let a checkpoint read outside its folder.
std::vector<std::string> shard_files(std::string_view index_json, std::string_view who);

}  // namespace lacuna
