// SPDX-License-Identifier: Apache-2.0
// Measures the rows of suite_row.h on this machine. A row's call and its baseline run in turn, in
// both orders, so that a slow minute of the machine falls on both; ratios are medians over pairs.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "bench/cpu_peak.h"
#include "bench/suite_row.h"
#include "lacuna/backend/backend.h"

namespace lacuna::bench {

struct SuiteSettings {
  int64_t seq_len = 16384;  // of the rows' definition; less only to try the suite out
  double seconds = 240;     // rough; every row gets three pairs at least
};

struct SuiteEvents {
  // Rows that are measured together begin: `done` of `total` such groups are finished.
  std::function<void(int done, int total, const SuiteRow& next)> next;
  std::function<void()> poll;                // between timed calls; may throw to stop
  std::function<void(const SuiteRow&)> row;  // every row, measured or skipped, in order
};

// `backend` is the CPU backend at this machine's level. Leaves the thread count at 1.
void run_attend_suite(const SuiteSettings& settings, const CpuPeak& peak, Backend& backend,
                      const SuiteEvents& events);

}  // namespace lacuna::bench
