// SPDX-License-Identifier: Apache-2.0
// Memory that only grows, for scratch kept by a thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace lacuna::cpu {

class ScratchBuffer {
 public:
  // At least `bytes` of 64-byte aligned memory; contents are lost when it grows. Throws Error when
  // it cannot be had.
  void* get(int64_t bytes);
  template <typename T>
  T* get_array(int64_t count) {
    return static_cast<T*>(get(count * static_cast<int64_t>(sizeof(T))));
  }

 private:
  struct Free {
    void operator()(void* p) const;
  };
  std::unique_ptr<void, Free> memory_;
  int64_t bytes_ = 0;
};

}  // namespace lacuna::cpu
