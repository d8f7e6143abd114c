// SPDX-License-Identifier: Apache-2.0
#include "cli/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>

#include "lacuna/core/printable.h"

namespace lacuna::cli {

ProgressBar::ProgressBar(std::string label, int total)
    : label_(std::move(label)),
      total_(total),
      terminal_(isatty(STDERR_FILENO) == 1),
      start_(std::chrono::steady_clock::now()) {}

ProgressBar::~ProgressBar() {
  if (drawn_) std::fputc('\n', stderr);
}

void ProgressBar::update(int done, const std::string& note) {
  if (first_ < 0) first_ = done;
  if (!terminal_) return;
  const double elapsed =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  const int steps = done - first_;
  constexpr int kWidth = 24;
  const int filled = static_cast<int>(std::lround(double{kWidth} * done / total_));
  std::string line = fmt::format("\r{} [{}{}] {}/{}", label_, std::string(filled, '#'),
                                 std::string(kWidth - filled, '.'), done, total_);
  if (steps > 0) {
    const double per_step = elapsed / steps;
    line += fmt::format("  {:.2f} s/step  ETA {}", per_step,
                        format_duration(per_step * (total_ - done)));
  }
  if (!note.empty()) line += "  " + one_line(note);
  // Not fmt::print, which throws when the terminal is gone: that is no reason to end a run.
  std::fputs((line + "\033[K").c_str(), stderr);
  std::fflush(stderr);
  drawn_ = true;
}

void ProgressBar::clear() {
  if (!drawn_) return;
  std::fputs("\r\033[K", stderr);
  std::fflush(stderr);
  drawn_ = false;
}

std::string format_duration(double seconds) {
  const auto s = static_cast<long>(std::lround(seconds));
  if (s >= 3600) return fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
  return fmt::format("{}:{:02}", s / 60, s % 60);
}

std::string format_bytes(double bytes) {
  for (const char* unit : {"B", "KiB", "MiB"}) {
    if (bytes < 1024.0) return fmt::format("{:.1f} {}", bytes, unit);
    bytes /= 1024.0;
  }
  return fmt::format("{:.1f} GiB", bytes);
}

}  // namespace lacuna::cli
