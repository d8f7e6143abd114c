// SPDX-License-Identifier: Apache-2.0
// What a command that writes files checks before any work.
#pragma once

#include <filesystem>
#include <vector>

namespace lacuna::cli {

// A file and the option that names it, or words for it; an empty path is none.
struct NamedFile {
  const char* name;
  std::filesystem::path path;
  bool is_video = false;  // PNG frames of other names where this one ends so
};

// Throws UsageError when two of `outputs` are one file, or one of them is an input too: the later
// would replace the earlier, or what was read, without a word.
void check_files_differ(const std::vector<NamedFile>& outputs,
                        const std::vector<NamedFile>& inputs = {});

}  // namespace lacuna::cli
