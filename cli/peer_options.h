// SPDX-License-Identifier: Apache-2.0
// Words of stable-diffusion.cpp and of Wan's generate.py that change nothing here, so that their
// command lines run. What means the same as one of our options is another name of it.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace lacuna::cli {

struct PeerOptions {
  std::string mode, task;
  std::vector<const CLI::Option*> hints;

  void add_to(CLI::App& command);
  // Names the hints that were given; empty where none was.
  std::string note() const;
};

}  // namespace lacuna::cli
