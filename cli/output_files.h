// SPDX-License-Identifier: Apache-2.0
// What a command that writes several files checks before any work.
#pragma once

#include <filesystem>
#include <initializer_list>

namespace lacuna::cli {

// A file that will be written and the option that names it; an empty name is none.
struct OutputFile {
  const char* option;
  std::filesystem::path path;
};

// Throws UsageError when two of them are one file: the later would replace the earlier without a
// word.
void check_files_differ(std::initializer_list<OutputFile> files);

}  // namespace lacuna::cli
