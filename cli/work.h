// SPDX-License-Identifier: Apache-2.0
// Long measurements: a bar that knows what is next, and Ctrl-C between their parts.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "cli/progress.h"

namespace lacuna::cli {

// Throws Cancelled when Ctrl-C was pressed; what long measurements call between their parts.
void check_interrupt();

// Counts work of known size on a bar, unless quiet.
class Work {
 public:
  explicit Work(bool quiet) : quiet_(quiet) {}
  void update(const std::string& label, int64_t done, int64_t total, const std::string& note = {});
  // Before other output to the terminal.
  void clear() {
    if (bar_) bar_->clear();
  }
  void end() { bar_.reset(); }

 private:
  bool quiet_;
  std::string label_;
  std::optional<ProgressBar> bar_;
};

}  // namespace lacuna::cli
