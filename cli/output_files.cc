// SPDX-License-Identifier: Apache-2.0
#include "cli/output_files.h"

#include <fmt/format.h>

#include <system_error>

#include "cli/command.h"

namespace lacuna::cli {
namespace {

namespace fs = std::filesystem;

// One path for all spellings of a file, which need not exist: a writer follows links, too.
fs::path place_of(const fs::path& path) {
  const fs::path whole = fs::absolute(path);
  std::error_code error;
  const fs::path place = fs::weakly_canonical(whole, error);
  return error ? whole.lexically_normal() : place;
}

}  // namespace

void check_files_differ(std::initializer_list<OutputFile> files) {
  for (const OutputFile& later : files)
    for (const OutputFile* earlier = files.begin(); earlier != &later; ++earlier) {
      if (later.path.empty() || earlier->path.empty()) continue;
      if (place_of(later.path) == place_of(earlier->path))
        throw UsageError(fmt::format("{} and {}: both are {}, expected different files",
                                     earlier->option, later.option, later.path.string()));
    }
}

}  // namespace lacuna::cli
