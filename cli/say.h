// SPDX-License-Identifier: Apache-2.0
// Printing for people what may hold a stranger's words (core/printable.h). Programs get JSON, which
// escapes control characters itself.
#pragma once

#include <fmt/format.h>

#include <cstdio>
#include <string_view>
#include <utility>

#include "lacuna/core/printable.h"

namespace lacuna::cli {

// Arguments that are no lines of their own go through one_line(). No error where nothing can be
// written there, since what a command has made comes after: main says it at the end.
template <typename... Args>
void say(fmt::format_string<Args...> format, Args&&... args) {
  std::fputs(printable(fmt::format(format, std::forward<Args>(args)...)).c_str(), stdout);
}

// One line on stderr. No error where nothing can be written there: main says errors so.
inline void say_note(std::string_view line) {
  std::fputs((one_line(line) + "\n").c_str(), stderr);
}

}  // namespace lacuna::cli
