// SPDX-License-Identifier: Apache-2.0
// Where tensors live: host memory, or memory that only a backend's ops can reach.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lacuna {

enum class Device : uint8_t { cpu, cuda };  // cpu = host memory

// An allocator. The default is host memory, which every backend without memory of its own uses.
class Memory {
 public:
  virtual ~Memory() = default;
  // Where allocate() allocates.
  virtual lacuna::Device device() const { return lacuna::Device::cpu; }
  // Uninitialised: at least 64-byte aligned on the host, 256-byte on a device; `bytes` may be 0.
  // Throws Error (not bad_alloc) when it cannot be had.
  virtual void* allocate(size_t bytes);
  virtual void release(void* memory);
};

Memory& host_memory();

}  // namespace lacuna
