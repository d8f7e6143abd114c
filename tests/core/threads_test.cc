// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/threads.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "lacuna/core/error.h"

namespace lacuna {
namespace {

class Threads : public testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    before_ = num_threads();
    set_num_threads(GetParam());
  }
  void TearDown() override { set_num_threads(before_); }
  int before_ = 1;
};

TEST_P(Threads, EveryTaskRunsOnceByAKnownWorker) {
  EXPECT_EQ(num_threads(), GetParam());
  for (int64_t n : {0, 1, 2, 1000}) {
    std::vector<std::atomic<int>> runs(static_cast<size_t>(n));
    std::atomic<int> wrong_worker{0};
    parallel_tasks(n, [&](int64_t task, int worker) {
      ++runs[static_cast<size_t>(task)];
      if (worker < 0 || worker >= GetParam()) ++wrong_worker;
    });
    EXPECT_EQ(wrong_worker, 0);
    EXPECT_TRUE(std::all_of(runs.begin(), runs.end(), [](const auto& r) { return r == 1; })) << n;
  }
}

TEST_P(Threads, RangesCoverEverythingOnceWithinTheGrain) {
  for (int64_t n : {0, 1, 7, 1000}) {
    for (int64_t grain : {-3, 1, 7, 64, 5000}) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(n));
      std::atomic<int64_t> widest{0};
      parallel_ranges(n, grain, [&](int64_t begin, int64_t end) {
        int64_t seen = widest;
        while (seen < end - begin && !widest.compare_exchange_weak(seen, end - begin)) {
        }
        for (int64_t i = begin; i < end; ++i) ++runs[static_cast<size_t>(i)];
      });
      EXPECT_TRUE(std::all_of(runs.begin(), runs.end(), [](const auto& r) { return r == 1; }))
          << n << " by " << grain;
      EXPECT_LE(widest, std::max<int64_t>(grain, 1));
    }
  }
}

TEST_P(Threads, AnExceptionReachesTheCaller) {
  const auto failing = [] {
    parallel_tasks(1000, [](int64_t task, int) {
      if (task == 17) fail("task {}", task);
    });
  };
  EXPECT_THROW(failing(), Error);
  // The pool is usable afterwards.
  std::atomic<int> runs{0};
  parallel_tasks(10, [&](int64_t, int) { ++runs; });
  EXPECT_EQ(runs, 10);
}

TEST_P(Threads, ANestedLoopRunsInItsCaller) {
  std::atomic<int> inner{0}, foreign{0};
  parallel_tasks(4, [&](int64_t, int) {
    parallel_tasks(5, [&](int64_t, int worker) {
      ++inner;
      if (worker != 0) ++foreign;
    });
  });
  EXPECT_EQ(inner, 20);
  EXPECT_EQ(foreign, 0);
}

INSTANTIATE_TEST_SUITE_P(Counts, Threads, testing::Values(1, 2, 5));

TEST(ThreadCount, OutOfRangeIsAnError) {
  EXPECT_THROW(set_num_threads(0), Error);
  EXPECT_THROW(set_num_threads(1025), Error);
}

}  // namespace
}  // namespace lacuna
