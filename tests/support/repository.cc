// SPDX-License-Identifier: Apache-2.0
#include "tests/support/repository.h"

namespace lacuna::test {

std::filesystem::path repository() {
  return LACUNA_REPOSITORY;
}

}  // namespace lacuna::test
