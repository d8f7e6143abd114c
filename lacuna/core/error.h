// SPDX-License-Identifier: Apache-2.0
// The one exception type of the library. Messages read `who: given, expected`.
#pragma once

#include <fmt/core.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace lacuna {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Throws Error with a formatted message: fail("attend: head_dim {}, expected 64 or 128", d).
template <typename... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace lacuna

// Always on: public edges and file readers.
#define LACUNA_CHECK(condition, ...)               \
  do {                                             \
    if (!(condition)) ::lacuna::fail(__VA_ARGS__); \
  } while (false)

// On in the dev and asan presets (RelWithDebInfo defines NDEBUG, so assert would be off).
#ifdef LACUNA_DEBUG_CHECKS
#define LACUNA_DCHECK(condition, ...) LACUNA_CHECK(condition, __VA_ARGS__)
#else
#define LACUNA_DCHECK(condition, ...) \
  do {                                \
  } while (false)
#endif
