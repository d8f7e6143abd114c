// SPDX-License-Identifier: Apache-2.0
#include "cli/default_model.h"

#include <system_error>

#include "lacuna/core/error.h"

namespace lacuna::cli {

namespace fs = std::filesystem;

fs::path default_model() {
  constexpr const char* kName = "lacuna-shapes";
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  const fs::path installed = program.parent_path().parent_path() / "share" / "lacuna" / kName;
  const fs::path source = fs::path(LACUNA_ASSETS) / kName;
  for (const fs::path& folder : {installed, source}) {
    if (fs::is_regular_file(folder / "model_index.json", error)) return folder;
  }
  fail("default model: neither {} nor {} is there; give a checkpoint with --model",
       installed.string(), source.string());
}

}  // namespace lacuna::cli
