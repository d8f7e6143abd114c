// SPDX-License-Identifier: Apache-2.0
// Where what can be made again is kept for this user.
#pragma once

#include <filesystem>

namespace lacuna {

// $XDG_CACHE_HOME/lacuna, else $HOME/.cache/lacuna, empty where neither is set. May not exist yet.
std::filesystem::path cache_folder();

}  // namespace lacuna
