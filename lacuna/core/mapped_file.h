// SPDX-License-Identifier: Apache-2.0
// A file seen as memory, read only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>
#include <vector>

namespace lacuna {

// Maps a whole regular file; pages are read when touched and belong to the page cache, so a mapped
// checkpoint costs no private memory. Truncating the file while it is mapped raises SIGBUS in the
// reader: writers must replace files (AtomicFile does), not change them in place.
class MappedFile {
 public:
  MappedFile() = default;
  // Throws Error naming the path when it is missing, unreadable or not a regular file. An empty
  // file gives an empty span.
  explicit MappedFile(const std::filesystem::path& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const uint8_t> bytes() const { return {data_, size_}; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

// Where a named tensor lies in a file, for the readers' overlap check.
struct ByteRange {
  int64_t begin = 0, end = 0;
  std::string_view name;
};

// Throws Error naming `who` (the file) and two tensors if two non-empty ranges share a byte.
void check_disjoint(std::vector<ByteRange> ranges, std::string_view who);

// Throws Error naming `who` if these are the bytes of a Git LFS pointer, which a clone without LFS
// leaves in the place of a large file.
void check_not_lfs_pointer(std::span<const uint8_t> bytes, std::string_view who);

}  // namespace lacuna
