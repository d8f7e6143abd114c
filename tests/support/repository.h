// SPDX-License-Identifier: Apache-2.0
// Where the tests' data lies.
#pragma once

#include <filesystem>

namespace lacuna::test {

// Root of the source tree that the tests were built from.
std::filesystem::path repository();

inline std::filesystem::path test_data() {
  return repository() / "tests/data";
}
inline std::filesystem::path assets() {
  return repository() / "assets";
}

}  // namespace lacuna::test
