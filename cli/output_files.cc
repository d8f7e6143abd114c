// SPDX-License-Identifier: Apache-2.0
#include "cli/output_files.h"

#include <fmt/format.h>

#include <system_error>

#include "cli/command.h"
#include "lacuna/models/video/video_writer.h"

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

bool has_frame(const NamedFile& video, const NamedFile& file) {
  if (!video.is_video) return false;
  const fs::path folder = place_of(fs::absolute(video.path).parent_path());
  return is_png_frame(folder / video.path.filename(), place_of(file.path));
}

void refuse_one_place(const NamedFile& first, const NamedFile& second) {
  if (first.path.empty() || second.path.empty()) return;
  if (place_of(first.path) == place_of(second.path) || has_frame(first, second) ||
      has_frame(second, first))
    throw UsageError(fmt::format("{} and {}: both are {}, expected different files", first.name,
                                 second.name, second.path.string()));
}

}  // namespace

void check_files_differ(const std::vector<NamedFile>& outputs,
                        const std::vector<NamedFile>& inputs) {
  for (auto output = outputs.begin(); output != outputs.end(); ++output) {
    for (auto earlier = outputs.begin(); earlier != output; ++earlier)
      refuse_one_place(*earlier, *output);
    for (const NamedFile& input : inputs) refuse_one_place(*output, input);
  }
}

}  // namespace lacuna::cli
