// SPDX-License-Identifier: Apache-2.0
// How much host memory a run may plan with.
#pragma once

#include <cstdint>
#include <filesystem>

namespace lacuna {

// Bytes that this process can still get, 0 when unknown: what the machine has (MemAvailable of
// /proc/meminfo), and where containers or job schedulers set limits (control groups, version 1 and
// 2), the least that any of them leaves. Pages of files count as free there too: the kernel takes
// them back before it kills. `root`: where /proc and /sys lie, for tests.
int64_t available_memory(const std::filesystem::path& root = "/");

}  // namespace lacuna
