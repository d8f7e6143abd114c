// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/cache_folder.h"

#include <cstdlib>

namespace lacuna {

std::filesystem::path cache_folder() {
  if (const char* xdg = std::getenv("XDG_CACHE_HOME"); xdg != nullptr && *xdg != '\0') {
    return std::filesystem::path(xdg) / "lacuna";
  }
  const char* home = std::getenv("HOME");
  return home == nullptr ? std::filesystem::path()
                         : std::filesystem::path(home) / ".cache" / "lacuna";
}

}  // namespace lacuna
