// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/available_memory.h"

#include <gtest/gtest.h>

#include <fstream>
#include <string>

#include "tests/support/temp_folder.h"

namespace lacuna {
namespace {

constexpr int64_t kMiB = 1 << 20;

// A tree of /proc and /sys that says what a test wants.
class AvailableMemory : public ::testing::Test {
 protected:
  void write(const std::string& name, const std::string& text) {
    const auto path = root_ / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text;
  }
  void machine(int64_t mib) {
    write("proc/meminfo", "MemTotal:  999999999 kB\nMemFree: 5 kB\nMemAvailable:   " +
                              std::to_string(mib * 1024) + " kB\nBuffers: 1 kB\n");
  }
  void group(const std::string& folder, const std::string& limit, int64_t used, int64_t cached) {
    write("sys/fs/cgroup/" + folder + "/memory.max", limit + "\n");
    write("sys/fs/cgroup/" + folder + "/memory.current", std::to_string(used * kMiB) + "\n");
    write("sys/fs/cgroup/" + folder + "/memory.stat",
          "anon 77\nactive_file " + std::to_string(cached * kMiB / 2) + "\ninactive_file " +
              std::to_string(cached * kMiB / 2) + "\nslab 3\n");
  }
  const test::TempFolder folder_;
  const std::filesystem::path root_ = folder_.path();
};

TEST_F(AvailableMemory, IsTheMachinesWithoutLimits) {
  EXPECT_EQ(available_memory(root_), 0) << "nothing is known";
  machine(5000);
  EXPECT_EQ(available_memory(root_), 5000 * kMiB);
  write("proc/self/cgroup", "0::/user.slice/session\n");
  group("user.slice/session", "max", 100, 0);
  EXPECT_EQ(available_memory(root_), 5000 * kMiB);
  write("proc/self/cgroup", "no colon\n:\n0:\n7:cpu,cpuacct:/a\n");
  EXPECT_EQ(available_memory(root_), 5000 * kMiB);
}

TEST_F(AvailableMemory, IsTheLeastThatAGroupLeaves) {
  machine(5000);
  write("proc/self/cgroup", "0::/job/step\n");
  group("job", std::to_string(1000 * kMiB), 300, 0);
  EXPECT_EQ(available_memory(root_), 700 * kMiB) << "of the group above";
  group("job/step", std::to_string(900 * kMiB), 800, 0);
  EXPECT_EQ(available_memory(root_), 100 * kMiB);
  group("job/step", std::to_string(900 * kMiB), 800, 600);
  EXPECT_EQ(available_memory(root_), 700 * kMiB) << "pages of files can be taken back";
  group("job/step", std::to_string(50 * kMiB), 80, 0);
  EXPECT_EQ(available_memory(root_), 1) << "none left is not unknown";
  machine(2);
  group("job/step", std::to_string(900 * kMiB), 80, 0);
  EXPECT_EQ(available_memory(root_), 2 * kMiB);
}

TEST_F(AvailableMemory, ContainersSeeTheirGroupAsTheRoot) {
  machine(5000);
  write("proc/self/cgroup", "0::/docker/not-to-be-seen-here\n");
  group(".", std::to_string(512 * kMiB), 112, 0);
  EXPECT_EQ(available_memory(root_), 400 * kMiB);
}

TEST_F(AvailableMemory, KnowsVersion1) {
  machine(5000);
  write("proc/self/cgroup", "5:cpu:/\n4:hugetlb,memory:/slurm/job\n0::/\n");
  const std::string folder = "sys/fs/cgroup/memory/slurm/job/";
  write(folder + "memory.limit_in_bytes", "9223372036854771712\n");
  write(folder + "memory.usage_in_bytes", std::to_string(50 * kMiB));
  EXPECT_EQ(available_memory(root_), 5000 * kMiB) << "no limit";
  write(folder + "memory.limit_in_bytes", std::to_string(200 * kMiB));
  write(folder + "memory.stat", "active_file 5\ntotal_active_file 1048576\n");
  EXPECT_EQ(available_memory(root_), 151 * kMiB);
}

}  // namespace
}  // namespace lacuna
