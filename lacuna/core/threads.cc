// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/threads.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>

#include "lacuna/core/error.h"

namespace lacuna {

int num_threads() {
  return omp_get_max_threads();
}

void set_num_threads(int n) {
  LACUNA_CHECK(n >= 1 && n <= 1024, "threads: {}, expected 1 to 1024", n);
  omp_set_num_threads(n);
}

void parallel_tasks(int64_t num_tasks, const std::function<void(int64_t task, int worker)>& body) {
  const int workers = static_cast<int>(std::min<int64_t>(num_tasks, num_threads()));
  if (workers <= 1 || omp_in_parallel()) {
    for (int64_t i = 0; i < num_tasks; ++i) body(i, 0);
    return;
  }
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;
  std::mutex error_mutex;
#pragma omp parallel num_threads(workers)
  {
    const int worker = omp_get_thread_num();
    for (int64_t i = next++; i < num_tasks && !failed; i = next++) {
      try {
        body(i, worker);
      } catch (...) {
        std::lock_guard lock(error_mutex);
        if (!error) error = std::current_exception();
        failed = true;
      }
    }
  }
  if (error) std::rethrow_exception(error);
}

void parallel_ranges(int64_t n, int64_t grain,
                     const std::function<void(int64_t begin, int64_t end)>& body) {
  grain = std::max<int64_t>(grain, 1);
  parallel_tasks((n + grain - 1) / grain,
                 [&](int64_t task, int) { body(task * grain, std::min(n, (task + 1) * grain)); });
}

}  // namespace lacuna
