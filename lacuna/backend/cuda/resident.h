// SPDX-License-Identifier: Apache-2.0
// Weights in device memory: copied at their first use, kept under a budget.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>

#include "lacuna/backend/cuda/device.h"
#include "lacuna/core/tensor.h"

namespace lacuna::cuda {

// How ops want a weight.
enum class Form : uint8_t { stored, patches };

class Resident {
 public:
  // Most bytes of kept weights. What streams takes room for two weights beside them.
  Resident(Device& device, size_t budget) : device_(device), budget_(budget) {}
  ~Resident();
  Resident(const Resident&) = delete;
  Resident& operator=(const Resident&) = delete;

  // Host memory that does not change until forget(): what lies in it may be kept. A range may be
  // promised more than once, and is then as often forgotten.
  void constant(const void* begin, size_t bytes);
  void forget(const void* begin);

  // A weight on the device for what is queued while this lives.
  class Weight {
   public:
    ~Weight();
    Weight(Weight&& other) noexcept;
    Weight& operator=(Weight&&) = delete;
    const void* data() const { return data_; }

   private:
    friend class Resident;
    Weight(Resident& owner, const void* data) : owner_(owner), data_(data) {}
    Resident& owner_;
    const void* data_;
    int slot_ = -1;                         // streamed through
    std::unique_ptr<DeviceMemory> memory_;  // of this use alone
  };
  // The weight with its own strides (Form::stored), wherever it lies. Host memory that is constant
  // is kept; other host memory is copied for this use.
  Weight get(const TensorView& w);
  // `bytes` that make(stored weight on the device, to) fills.
  using Make = std::function<void(const void* stored, void* to)>;
  Weight get(const TensorView& w, Form form, size_t bytes, const Make& make);

  // All of the view lies in memory promised constant.
  bool is_constant(const TensorView& w) const;

  size_t budget() const { return budget_; }
  size_t bytes() const { return bytes_; }         // kept now
  int64_t copied() const { return copied_; }      // weights copied to be kept
  int64_t streamed() const { return streamed_; }  // weights copied although constant

 private:
  struct Key {
    const char* data;
    size_t bytes;  // of the stored weight
    Form form;
    auto operator<=>(const Key&) const = default;
  };
  struct Entry {
    std::unique_ptr<DeviceMemory> memory;  // null = not here now
    size_t bytes = 0;
    int64_t used = 0;  // when last; 0 = never
  };
  bool make_room(size_t bytes, int64_t used);
  void drop(Entry& entry);
  Weight upload(const Key& key, bool stream);

  Device& device_;
  const size_t budget_;
  struct Range {
    size_t bytes = 0;
    int promises = 0;
  };
  std::map<const char*, Range> ranges_;
  std::map<Key, Entry> entries_;
  size_t bytes_ = 0;
  int64_t clock_ = 0, copied_ = 0, streamed_ = 0;
  struct Slot {
    std::unique_ptr<DeviceMemory> memory;
    size_t bytes = 0;
  };
  Slot slots_[2];
  int next_slot_ = 0;
};

}  // namespace lacuna::cuda
