// SPDX-License-Identifier: Apache-2.0
// Prompts of commands that take several.
#pragma once

#include <string>
#include <vector>

namespace lacuna::cli {

// Lines without blanks at their ends; empty ones and those that start with # are left out. Throws
// Error when the file cannot be read, holds none, too many or too long ones.
std::vector<std::string> read_prompts(const std::string& path);

// What commands look at when no prompt is given: a sentence the small model that ships knows.
inline constexpr char kDefaultPrompt[] =
    "a big red circle moves left over a striped brown and navy background, the camera pans right";

}  // namespace lacuna::cli
