// SPDX-License-Identifier: Apache-2.0
// A file that appears complete or not at all.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string_view>

namespace lacuna {

// Writes go to a temporary file in the target's directory; commit() flushes it to disk and renames
// it over the target. Without commit() the destructor removes it, so readers never see a part and
// an older target survives any failure. A target that is a symbolic link to a file is followed.
class AtomicFile {
 public:
  // Throws Error naming the path when the directory is missing or not writable, or when the target
  // exists and is not a regular file.
  explicit AtomicFile(const std::filesystem::path& target);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  // Appends. Throws Error (disk full, short write) naming the target and the reason.
  void write(const void* data, size_t size);
  void write(std::string_view text) { write(text.data(), text.size()); }
  // For libraries that write by path: they may fill this file in place.
  const std::filesystem::path& temporary() const { return temporary_; }
  // Flushes to disk and closes: many files may wait for their commit() without a descriptor each.
  void flush();
  // Flushes what is not and makes the target. Throws Error, leaving an older target as it was; call
  // at most once.
  void commit();

 private:
  std::filesystem::path target_, temporary_;
  int fd_ = -1;  // -1 once flushed
  bool committed_ = false;
};

}  // namespace lacuna
