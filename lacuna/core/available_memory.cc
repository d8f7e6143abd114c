// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/available_memory.h"

#include <algorithm>
#include <fstream>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>

namespace lacuna {
namespace {

namespace fs = std::filesystem;

// Where a version of control groups keeps its numbers.
struct GroupFiles {
  const char* folder;  // below /sys/fs/cgroup
  const char* limit;   // a number, or "max"
  const char* usage;
  std::initializer_list<std::string_view> file_pages;  // keys of memory.stat
};
const GroupFiles kVersion1 = {"memory",
                              "memory.limit_in_bytes",
                              "memory.usage_in_bytes",
                              {"total_active_file", "total_inactive_file"}};
const GroupFiles kVersion2 = {"", "memory.max", "memory.current", {"active_file", "inactive_file"}};

std::optional<int64_t> number_in(const fs::path& path) {
  std::ifstream in(path);
  int64_t value = 0;
  if (in >> value) return value;
  return {};
}

// Sum of the values of `keys` in lines of "key value".
int64_t sum_of(const fs::path& path, const std::initializer_list<std::string_view>& keys) {
  std::ifstream in(path);
  std::string key;
  int64_t value = 0, sum = 0;
  while (in >> key >> value)
    if (std::find(keys.begin(), keys.end(), key) != keys.end()) sum += value;
  return sum;
}

// What the group of `folder` leaves; nothing where it sets no limit. Version 1 says "none" by a
// number close to 2^63.
std::optional<int64_t> left_by(const fs::path& folder, const GroupFiles& files) {
  constexpr int64_t kNone = int64_t{1} << 60;
  const auto limit = number_in(folder / files.limit);
  const auto usage = number_in(folder / files.usage);
  if (!limit || !usage || *limit >= kNone) return {};
  const int64_t cached = sum_of(folder / "memory.stat", files.file_pages);
  return std::max<int64_t>(0, *limit - std::max<int64_t>(0, *usage - cached));
}

// A line of /proc/self/cgroup is "number:controllers:path". Limits of the groups above hold too,
// and in a container the path may be that of the host, of which only the root is to be seen.
std::optional<int64_t> left_by_groups(const fs::path& root) {
  std::ifstream in(root / "proc/self/cgroup");
  std::optional<int64_t> least;
  for (std::string line; std::getline(in, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool version1 = controllers.find(",memory,") != std::string::npos;
    if (!version1 && controllers != ",,") continue;
    const GroupFiles& files = version1 ? kVersion1 : kVersion2;
    const fs::path top = root / "sys/fs/cgroup" / files.folder;
    const fs::path group = fs::path(line.substr(second + 1)).relative_path();
    fs::path folder = top;
    auto part = group.begin();
    while (true) {
      if (const auto left = left_by(folder, files)) least = std::min(least.value_or(*left), *left);
      if (part == group.end()) break;
      folder /= *part++;
    }
  }
  return least;
}

}  // namespace

int64_t available_memory(const fs::path& root) {
  std::ifstream in(root / "proc/meminfo");
  std::string key;
  int64_t kib = 0;
  while (in >> key >> kib && key != "MemAvailable:") in.ignore(64, '\n');
  const int64_t machine = key == "MemAvailable:" ? kib * 1024 : 0;
  const auto groups = left_by_groups(root);
  if (!groups) return machine;
  // 0 would say "unknown".
  const int64_t left = std::max<int64_t>(1, *groups);
  return machine > 0 ? std::min(machine, left) : left;
}

}  // namespace lacuna
