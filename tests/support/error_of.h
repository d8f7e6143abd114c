// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "lacuna/core/error.h"

namespace lacuna::test {

// Text of the Error that `action` throws; "" when it throws none.
template <typename Action>
[[nodiscard]] std::string error_of(Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return {};
}

}  // namespace lacuna::test
