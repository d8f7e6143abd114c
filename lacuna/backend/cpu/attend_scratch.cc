// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cpu/attend_scratch.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>

#include "lacuna/core/error.h"

namespace lacuna::cpu {

void ScratchBuffer::Free::operator()(void* p) const {
  std::free(p);
}

void* ScratchBuffer::get(int64_t bytes) {
  if (bytes <= bytes_) return memory_.get();
  constexpr int64_t kHugePage = int64_t{2} << 20;
  const int64_t alignment = bytes >= kHugePage ? kHugePage : 64;
  const int64_t rounded = (bytes + alignment - 1) / alignment * alignment;
  memory_.reset();
  bytes_ = 0;
  memory_.reset(std::aligned_alloc(static_cast<size_t>(alignment), static_cast<size_t>(rounded)));
  LACUNA_CHECK(memory_ != nullptr, "attend: no memory, {} bytes of scratch expected", rounded);
  bytes_ = rounded;
  // Packed K and V are read in jumps: with 4 KiB pages the TLB misses show. Advice may be refused.
  if (alignment == kHugePage) madvise(memory_.get(), static_cast<size_t>(rounded), MADV_HUGEPAGE);
  return memory_.get();
}

}  // namespace lacuna::cpu
