// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <string>
#include <system_error>

#include "lacuna/core/error.h"

namespace lacuna {
namespace {

namespace fs = std::filesystem;

fs::path resolve_target(const fs::path& target) {
  LACUNA_CHECK(target.has_filename(), "write {}: names no file", target.string());
  std::error_code error;
  const fs::file_status status = fs::status(target, error);
  if (!fs::exists(status)) return target;
  // Renaming over a device such as /dev/null would replace it.
  LACUNA_CHECK(fs::is_regular_file(status), "write {}: exists and is not a regular file",
               target.string());
  if (!fs::is_symlink(fs::symlink_status(target, error))) return target;
  const fs::path resolved = fs::canonical(target, error);
  LACUNA_CHECK(!error, "write {}: {}", target.string(), error.message());
  return resolved;
}

fs::path directory_of(const fs::path& target) {
  return target.has_parent_path() ? target.parent_path() : fs::path(".");
}

}  // namespace

AtomicFile::AtomicFile(const fs::path& target) : target_(resolve_target(target)) {
  // A short name of its own: one derived from the target could exceed the length limit. open() and
  // not mkstemp() so that the permissions follow the user's umask.
  static std::atomic<unsigned> counter{0};
  constexpr int kAttempts = 100;
  for (int i = 0; i < kAttempts && fd_ < 0; ++i) {
    temporary_ = directory_of(target_) / fmt::format(".lacuna-{}-{}.tmp", ::getpid(), counter++);
    fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd_ < 0 && errno != EEXIST) break;
  }
  LACUNA_CHECK(fd_ >= 0, "write {}: cannot create a file in {}: {}", target_.string(),
               directory_of(target_).string(), std::strerror(errno));
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!committed_) ::unlink(temporary_.c_str());
}

void AtomicFile::write(const void* data, size_t size) {
  LACUNA_CHECK(fd_ >= 0, "write {}: already flushed", target_.string());
  const char* p = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t written = ::write(fd_, p, std::min<size_t>(size, size_t{1} << 30));
    if (written < 0 && errno == EINTR) continue;
    LACUNA_CHECK(written > 0, "write {}: {} bytes left: {}", target_.string(), size,
                 written < 0 ? std::strerror(errno) : "nothing was written");
    p += written;
    size -= static_cast<size_t>(written);
  }
}

void AtomicFile::flush() {
  LACUNA_CHECK(fd_ >= 0, "write {}: already flushed", target_.string());
  LACUNA_CHECK(::fsync(fd_) == 0, "write {}: cannot flush: {}", target_.string(),
               std::strerror(errno));
  ::close(fd_);
  fd_ = -1;
}

void AtomicFile::commit() {
  LACUNA_CHECK(!committed_, "write {}: already committed", target_.string());
  if (fd_ >= 0) flush();
  // Until the rename has succeeded the destructor still removes the temporary file.
  LACUNA_CHECK(::rename(temporary_.c_str(), target_.c_str()) == 0, "write {}: cannot rename: {}",
               target_.string(), std::strerror(errno));
  committed_ = true;
  // The new name itself reaches the disk with its directory; the file is complete either way.
  const int directory = ::open(directory_of(target_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory >= 0) {
    ::fsync(directory);
    ::close(directory);
  }
}

}  // namespace lacuna
