// SPDX-License-Identifier: Apache-2.0
// Parallel loops over independent tasks. Built on OpenMP because Debian's oneDNN runs on it: a
// second pool would fight its spinning workers for the same cores (docs/architecture.md).
#pragma once

#include <cstdint>
#include <functional>

namespace lacuna {

int num_threads();
// Process-wide; n >= 1. Overrides LACUNA_THREADS and OMP_NUM_THREADS.
void set_num_threads(int n);

// Runs body(task, worker) for task in [0, num_tasks), worker in [0, num_threads()). Tasks are
// handed out one at a time. Results must not depend on which worker runs a task: that is how
// "same seed, same bytes for any thread count" holds. The first exception is rethrown.
void parallel_tasks(int64_t num_tasks, const std::function<void(int64_t task, int worker)>& body);

// Cuts [0, n) into ranges of `grain` and runs body(begin, end) on them.
void parallel_ranges(int64_t n, int64_t grain,
                     const std::function<void(int64_t begin, int64_t end)>& body);

}  // namespace lacuna
