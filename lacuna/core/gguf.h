// SPDX-License-Identifier: Apache-2.0
// The GGUF container, versions 2 and 3, little-endian, read only.
// https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "lacuna/core/mapped_file.h"
#include "lacuna/core/safetensors.h"
#include "lacuna/core/tensor.h"

namespace lacuna {

// Numbers are the file format's.
enum class GgufType : uint32_t {
  u8 = 0,
  i8 = 1,
  u16 = 2,
  i16 = 3,
  u32 = 4,
  i32 = 5,
  f32 = 6,
  boolean = 7,
  string = 8,
  array = 9,
  u64 = 10,
  i64 = 11,
  f64 = 12,
};

// Elements as they lie in the file, already bounds-checked to the last byte.
struct GgufArray {
  GgufType type = GgufType::u8;
  uint64_t count = 0;
  std::span<const uint8_t> bytes;
};

// Integers that fit are int64_t; only larger u64 values stay uint64_t.
using GgufValue = std::variant<bool, int64_t, uint64_t, double, std::string_view, GgufArray>;

// A memory-mapped file. Shapes are row-major (the file's dimensions reversed), after
// `comfy.gguf.orig_shape.NAME` where present. Views and strings point into the map and live as long
// as this object; views may be unaligned when the file asks for a small alignment (see
// SafetensorsFile).
class GgufFile {
 public:
  // Validates everything before use: counts against the bytes that are left, string and array
  // extents, nesting of arrays (at most 4), unique keys and names, rank <= kMaxRank, sizes without
  // overflow, alignment, offsets inside the file, no two tensors overlapping. Throws Error naming
  // file and key or tensor; a tensor type outside DType is an error that names it.
  explicit GgufFile(const std::filesystem::path& path);

  const TensorMap& tensors() const { return tensors_; }
  const std::map<std::string, GgufValue, std::less<>>& metadata() const { return metadata_; }
  const std::filesystem::path& path() const { return file_.path(); }

  // Metadata by key; empty when the key is absent. Throw Error naming file and key when the value
  // has another type or an array more than 2^22 values. Integers and floats are converted between
  // widths if the value fits.
  std::optional<std::string_view> string(std::string_view key) const;
  std::optional<int64_t> integer(std::string_view key) const;
  std::optional<double> number(std::string_view key) const;
  std::optional<bool> boolean(std::string_view key) const;
  std::optional<std::vector<std::string_view>> strings(std::string_view key) const;
  std::optional<std::vector<float>> floats(std::string_view key) const;
  std::optional<std::vector<int64_t>> integers(std::string_view key) const;

 private:
  const GgufArray* array(std::string_view key) const;

  MappedFile file_;
  std::map<std::string, GgufValue, std::less<>> metadata_;
  TensorMap tensors_;
};

}  // namespace lacuna
