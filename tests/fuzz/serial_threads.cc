// SPDX-License-Identifier: Apache-2.0
// core/threads.h without OpenMP, which clang does not bring along on Debian: a fuzzer runs one
// input at a time anyway.
#include <algorithm>

#include "lacuna/core/threads.h"

namespace lacuna {

int num_threads() {
  return 1;
}

void set_num_threads(int) {}

void parallel_tasks(int64_t num_tasks, const std::function<void(int64_t task, int worker)>& body) {
  for (int64_t i = 0; i < num_tasks; ++i) body(i, 0);
}

void parallel_ranges(int64_t n, int64_t grain,
                     const std::function<void(int64_t begin, int64_t end)>& body) {
  grain = std::max<int64_t>(grain, 1);
  for (int64_t begin = 0; begin < n; begin += grain) body(begin, std::min(n, begin + grain));
}

}  // namespace lacuna
