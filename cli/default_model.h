// SPDX-License-Identifier: Apache-2.0
// The small trained model that ships with the program.
#pragma once

#include <filesystem>

namespace lacuna::cli {

// Its folder: share/lacuna/lacuna-shapes beside the bin folder the program runs from, else the
// source tree's. Throws Error naming both when neither is there.
std::filesystem::path default_model();

}  // namespace lacuna::cli
