// SPDX-License-Identifier: Apache-2.0
#include "cli/prompts.h"

#include <fstream>

#include "lacuna/core/error.h"

namespace lacuna::cli {

std::vector<std::string> read_prompts(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  LACUNA_CHECK(in.good(), "prompts: could not read {}", path);
  std::vector<std::string> prompts;
  constexpr size_t kMaxLine = 1 << 16, kMaxPrompts = 10000;
  for (std::string line; std::getline(in, line);) {
    const auto begin = line.find_first_not_of(" \t\r"), end = line.find_last_not_of(" \t\r");
    if (begin == std::string::npos || line[begin] == '#') continue;
    LACUNA_CHECK(line.size() <= kMaxLine && prompts.size() < kMaxPrompts,
                 "prompts: {} has a line of {} bytes after {} prompts, expected at most {} and {}",
                 path, line.size(), prompts.size(), kMaxLine, kMaxPrompts);
    prompts.push_back(line.substr(begin, end - begin + 1));
  }
  LACUNA_CHECK(!prompts.empty(), "prompts: {} holds none, expected one per line", path);
  return prompts;
}

}  // namespace lacuna::cli
