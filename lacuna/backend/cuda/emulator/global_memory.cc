// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cuda/emulator/global_memory.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "lacuna/core/error.h"

namespace lacuna::cuda::emulator {

GlobalMemory::~GlobalMemory() {
  for (const Allocation& a : live_) std::free(a.begin);
}

// At least 256 bytes past the end belong to nobody.
size_t GlobalMemory::padded(size_t bytes) {
  return (bytes + 255) / 256 * 256 + 256;
}

void* GlobalMemory::allocate(size_t bytes) {
  auto* p = static_cast<unsigned char*>(std::aligned_alloc(256, padded(bytes)));
  LACUNA_CHECK(p != nullptr, "emulator: {} bytes, expected that much memory", bytes);
  std::memset(p, 0xFF, padded(bytes));
  live_.insert(live_.begin(), {p, bytes});
  return p;
}

void GlobalMemory::release(void* p) {
  std::erase_if(live_, [&](const Allocation& a) { return a.begin == p; });
  std::free(p);
}

bool GlobalMemory::owns(const void* p, size_t bytes) const {
  const auto* at = static_cast<const unsigned char*>(p);
  for (size_t i = 0; i < live_.size(); ++i) {
    const Allocation a = live_[i];
    if (at < a.begin || at + bytes > a.begin + a.bytes) continue;
    // Few allocations take nearly all accesses.
    if (i > 0) std::swap(live_[i], live_[i - 1]);
    return true;
  }
  return false;
}

std::string GlobalMemory::damage() const {
  for (const Allocation& a : live_)
    if (std::any_of(a.begin + a.bytes, a.begin + padded(a.bytes),
                    [](unsigned char byte) { return byte != 0xFF; }))
      return fmt::format("wrote past the end of an allocation of {} bytes", a.bytes);
  return {};
}

}  // namespace lacuna::cuda::emulator
