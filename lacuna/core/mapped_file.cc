// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "lacuna/core/error.h"

namespace lacuna {

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path) {
  // O_NONBLOCK: opening a pipe without a writer must fail below, not hang here.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  LACUNA_CHECK(fd >= 0, "{}: cannot open: {}", path.string(), std::strerror(errno));
  struct Closer {
    int fd;
    ~Closer() { ::close(fd); }
  } closer{fd};
  struct stat info {};
  LACUNA_CHECK(::fstat(fd, &info) == 0, "{}: cannot stat: {}", path.string(), std::strerror(errno));
  LACUNA_CHECK(!S_ISDIR(info.st_mode), "{}: is a directory, expected a file", path.string());
  LACUNA_CHECK(S_ISREG(info.st_mode), "{}: not a regular file", path.string());
  const auto size = static_cast<size_t>(info.st_size);
  if (size == 0) return;
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
  LACUNA_CHECK(data != MAP_FAILED, "{}: cannot map {} bytes: {}", path.string(), size,
               std::strerror(errno));
  data_ = static_cast<const uint8_t*>(data);
  size_ = size;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<uint8_t*>(data_), size_);
}

void check_disjoint(std::vector<ByteRange> ranges, std::string_view who) {
  std::erase_if(ranges, [](const ByteRange& r) { return r.begin >= r.end; });
  std::sort(ranges.begin(), ranges.end(),
            [](const ByteRange& a, const ByteRange& b) { return a.begin < b.begin; });
  for (size_t i = 1; i < ranges.size(); ++i) {
    LACUNA_CHECK(ranges[i - 1].end <= ranges[i].begin, "{}: tensors {} and {} overlap", who,
                 ranges[i - 1].name, ranges[i].name);
  }
}

void check_not_lfs_pointer(std::span<const uint8_t> bytes, std::string_view who) {
  constexpr std::string_view kStart = "version https://git-lfs";
  const bool pointer =
      bytes.size() >= kStart.size() && std::equal(kStart.begin(), kStart.end(), bytes.begin());
  LACUNA_CHECK(!pointer,
               "{}: a Git LFS pointer of {} bytes, expected the file itself; fetch it (git lfs "
               "pull)",
               who, bytes.size());
}

}  // namespace lacuna
