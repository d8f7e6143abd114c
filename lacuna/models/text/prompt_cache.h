// SPDX-License-Identifier: Apache-2.0
// Prompt embeddings on disk: encoding one prompt reads 11 GB of UMT5-XXL, the result is under 8 MB.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lacuna/core/tensor.h"

namespace lacuna {

// Says which numbers an encoder gives: sizes and sampled bytes of its files in order (names and
// dates do not matter), its config, the compute dtype and Backend::rounding(). 64 blocks of
// 4 KiB are read per file, so two fine-tunes of one encoder are told apart with near certainty
// without reading 11 GB. Throws Error naming a file that cannot be read.
std::string encoder_identity(const std::vector<std::filesystem::path>& files,
                             std::string_view config_json, DType compute,
                             std::string_view rounding);

// Entries are safetensors files named by a hash of identity and ids; each also holds identity and
// ids in full, so a collision is a miss and never a wrong embedding. Bitwise what was stored.
class PromptCache {
 public:
  // Makes the folder when something is stored. An empty path turns the cache off.
  PromptCache(std::filesystem::path folder, std::string identity);

  // [ids.size(), dim] f32, or nothing: absent, corrupt, of another encoder, of another width. Never
  // throws for what it finds on disk; the next store() replaces it.
  std::optional<Tensor> find(std::span<const int32_t> ids, int64_t dim) const;

  // embedding [ids.size(), dim] f32. Written atomically: readers in other processes see all of it
  // or nothing. Returns false when the folder cannot be written (a full or read-only disk): a cache
  // must not fail a generation. Throws Error on a wrong shape.
  bool store(std::span<const int32_t> ids, const TensorView& embedding) const;

  // Where the entry for these ids lies.
  std::filesystem::path entry(std::span<const int32_t> ids) const;

 private:
  std::filesystem::path folder_;
  std::string identity_;
};

}  // namespace lacuna
