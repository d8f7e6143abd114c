// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/memory.h"

#include <sys/mman.h>

#include <cstdlib>

#include "lacuna/core/error.h"

namespace lacuna {

void* Memory::allocate(size_t bytes) {
  // Large tensors take huge pages: first touch costs half as much and GEMMs miss the TLB less.
  constexpr size_t kHugePage = size_t{1} << 21;
  const bool huge = bytes >= 2 * kHugePage;
  const size_t align = huge ? kHugePage : 64;
  // No machine has it; sanitizers abort on such a request instead of refusing it.
  constexpr size_t kMaxBytes = size_t{1} << 39;
  LACUNA_CHECK(bytes <= kMaxBytes, "memory: {} bytes, too large", bytes);
  const size_t size = (bytes + align) / align * align;
  void* p = std::aligned_alloc(align, size);
  LACUNA_CHECK(p != nullptr, "memory: could not allocate {:.1f} MiB",
               static_cast<double>(bytes) / 1048576.0);
  if (huge) madvise(p, size, MADV_HUGEPAGE);  // advice: a refusal changes nothing
  return p;
}

void Memory::release(void* memory) {
  std::free(memory);
}

Memory& host_memory() {
  static Memory* const memory = new Memory;  // outlives every static tensor
  return *memory;
}

}  // namespace lacuna
