// SPDX-License-Identifier: Apache-2.0
// Device memory of the emulator: every allocation stands alone between bytes nobody may touch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace lacuna::cuda::emulator {

class GlobalMemory {
 public:
  GlobalMemory() = default;
  ~GlobalMemory();
  GlobalMemory(const GlobalMemory&) = delete;
  GlobalMemory& operator=(const GlobalMemory&) = delete;

  // Poisoned: what a kernel does not write is NaN.
  void* allocate(size_t bytes);
  void release(void* p);
  // All of the bytes inside one live allocation.
  bool owns(const void* p, size_t bytes) const;
  // What was written past the end of a live allocation, or nothing.
  std::string damage() const;

 private:
  struct Allocation {
    unsigned char* begin;
    size_t bytes;
  };
  static size_t padded(size_t bytes);
  mutable std::vector<Allocation> live_;  // what was asked for last comes first
};

}  // namespace lacuna::cuda::emulator
