// SPDX-License-Identifier: Apache-2.0
// The safetensors container: u64 little-endian header length, JSON header, raw tensors.
// https://github.com/huggingface/safetensors#format
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "lacuna/core/mapped_file.h"
#include "lacuna/core/tensor.h"

namespace lacuna {

using TensorMap = std::map<std::string, TensorView, std::less<>>;
using Metadata = std::map<std::string, std::string, std::less<>>;

// A memory-mapped file. Views point into the map (never write through them), live as long as this
// object, and may lie at ANY byte address: read them with convert() or memcpy, not through a typed
// pointer. (WeightSource::load copies such tensors, so its views are aligned.)
class SafetensorsFile {
 public:
  // Validates everything before use: header within the file and 100 MB, JSON shape, duplicate
  // names, dtypes, rank <= kMaxRank, size = elements * width without overflow, offsets inside the
  // file, no two tensors overlapping. Gaps are accepted. Throws Error naming file and tensor.
  explicit SafetensorsFile(const std::filesystem::path& path);

  const TensorMap& tensors() const { return tensors_; }
  const Metadata& metadata() const { return metadata_; }  // "__metadata__"
  // Throws Error naming file and tensor if absent.
  const TensorView& at(std::string_view name) const;
  const std::filesystem::path& path() const { return file_.path(); }

 private:
  MappedFile file_;
  TensorMap tensors_;
  Metadata metadata_;
};

// Writes the file atomically (AtomicFile). Tensors are contiguous host views of unique names and
// any dtype but the block-quantised ones; they are stored widest element first, then by name, so
// that every tensor is aligned. Equal input gives equal bytes.
void write_safetensors(const std::filesystem::path& path,
                       const std::vector<std::pair<std::string, TensorView>>& tensors,
                       const Metadata& metadata = {});

}  // namespace lacuna
