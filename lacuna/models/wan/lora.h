// SPDX-License-Identifier: Apache-2.0
// LoRA: a file of small changes to the weights of a transformer, and the source that makes them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "lacuna/core/safetensors.h"
#include "lacuna/models/wan/wan_config.h"
#include "lacuna/models/weights.h"

namespace lacuna {

// A safetensors file of LoRA for a Wan transformer. Names (docs/formats.md, "LoRA") may be those of
// diffusers, of the original code or of trainers that flatten them.
class LoraFile {
 public:
  // W += factor * up down + diff. Views into the file, at any address.
  struct Change {
    TensorView up, down;  // [n, r, ...] and [r, k, ...], or both without memory
    float factor = 1.0f;  // alpha / r
    TensorView diff;      // of the tensor's shape, or without memory
    std::string source;   // a name in the file, for messages
    int64_t rank() const { return up.data == nullptr ? 0 : down.shape[0]; }
  };
  using Changes = std::map<std::string, Change, std::less<>>;

  // The file may be hostile. Throws Error naming file and tensor on all that is not understood
  // (DoRA, LoHa, LoKr, text encoders, other networks), half a pair, a rank
  // beyond 2048, a dtype other than f32, f16 and bf16, a value or an alpha that is not a finite
  // number. Reads the whole file.
  explicit LoraFile(const std::filesystem::path& path);

  std::filesystem::path path() const { return file_.path(); }
  const Changes& changes() const { return changes_; }  // by the diffusers name of the tensor
  // Throws Error naming the first tensor that a network of these sizes does not have, or not so.
  void check(const WanConfig& config) const;
  // Of names, shapes, first bytes and what alpha makes of each pair, wherever the file says it.
  uint64_t fingerprint() const;
  // Of memory in use: the file and what with_loras makes of it.
  int64_t held_bytes() const;
  // The most that one matrix takes: its pair in f32, and with the sums of rows (Context::weight).
  struct PairBytes {
    int64_t pair = 0, scratch = 0;
  };
  PairBytes largest_pair() const;

 private:
  SafetensorsFile file_;
  Changes changes_;
};

// Whether a file holds LoRA and no network beside it, as far as its header tells.
bool is_lora_file(const std::filesystem::path& path);

struct ScaledLora {
  std::shared_ptr<const LoraFile> file;
  double scale = 1.0;
};

// The tensors of `base` with every change, each `scale` times. What load() gives is f32 and owned
// where anything is added; load_matrix() leaves the updates of low rank to its user. `rename` maps
// diffusers names to names in `base` (wan_rename, or null for the same). Files are checked
// (LoraFile::check) by the caller.
std::unique_ptr<WeightSource> with_loras(std::unique_ptr<WeightSource> base,
                                         std::vector<ScaledLora> loras,
                                         std::function<std::string(std::string_view)> rename);

}  // namespace lacuna
