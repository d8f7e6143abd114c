// SPDX-License-Identifier: Apache-2.0
// A one-line progress bar on stderr: quiet when that is not a terminal.
#pragma once

#include <chrono>
#include <string>

namespace lacuna::cli {

class ProgressBar {
 public:
  // `label` such as "sampling"; total steps > 0.
  ProgressBar(std::string label, int total);
  ~ProgressBar();  // ends the line
  // `done` steps are finished; `note` is shown behind the times ("density 0.31").
  void update(int done, const std::string& note = {});
  // Wipes the line, for output to the same terminal; the next update draws it again.
  void clear();

 private:
  std::string label_;
  int total_;
  bool terminal_;
  bool drawn_ = false;
  int first_ = -1;  // steps already done at the first update (a resumed run)
  std::chrono::steady_clock::time_point start_;
};

// 75 -> "1:15", 3700 -> "1:01:40".
std::string format_duration(double seconds);
// 1536 -> "1.5 KiB".
std::string format_bytes(double bytes);

}  // namespace lacuna::cli
