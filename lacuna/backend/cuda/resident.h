// SPDX-License-Identifier: Apache-2.0
// Weights in device memory: copied at their first use, kept where there is room, else copied again.
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

// What is kept fills the device up to its limit, less the most that all else ever needed: kept
// weights leave when other memory is asked for, and stay away. What finds no room streams through
// two slots in turn, which hold it until others need them.
class Resident {
 public:
  explicit Resident(Device& device);
  ~Resident();
  Resident(const Resident&) = delete;
  Resident& operator=(const Resident&) = delete;

  // Host memory that does not change until forget(): what lies in it may be kept. A range may be
  // promised more than once, and is then as often forgotten.
  void constant(const void* begin, size_t bytes);
  void forget(const void* begin);

  // A weight on the device for what is queued while this lives. At most two that stream at a time.
  class Weight {
   public:
    ~Weight();
    Weight(Weight&& other) noexcept;
    Weight& operator=(Weight&&) = delete;
    const void* data() const { return data_; }

   private:
    friend class Resident;
    Weight(Resident& owner, const void* data) : owner_(owner), data_(data) {}
    Weight(Resident& owner, std::shared_ptr<DeviceMemory> memory)
        : owner_(owner), data_(memory->as<void>()), memory_(std::move(memory)) {}
    Resident& owner_;
    const void* data_;
    int slot_ = -1;                         // streamed through
    std::shared_ptr<DeviceMemory> memory_;  // stays for this use, whatever else happens
  };
  // The weight with its own strides (Form::stored), wherever it lies. Host memory that is constant
  // is kept; other host memory is copied for this use.
  Weight get(const TensorView& w);
  // `bytes` that make(stored weight on the device, to) fills.
  using Make = std::function<void(const void* stored, void* to)>;
  Weight get(const TensorView& w, Form form, size_t bytes, const Make& make);

  // All of the view lies in memory promised constant.
  bool is_constant(const TensorView& w) const;

  size_t bytes() const { return bytes_; }         // kept now
  int64_t copied() const { return copied_; }      // weights copied to be kept
  int64_t streamed() const { return streamed_; }  // weights copied although constant

 private:
  struct Key {
    const char* data = nullptr;
    size_t bytes = 0;  // of the stored weight
    Form form = Form::stored;
    auto operator<=>(const Key&) const = default;
  };
  struct Entry {
    std::shared_ptr<DeviceMemory> memory;  // null = not here now
    size_t bytes = 0;
    int64_t used = 0;  // when last; 0 = never
  };
  struct Slot {
    std::shared_ptr<DeviceMemory> memory;
    size_t bytes = 0;
    Key holds;  // of form stored
  };
  size_t others() const;  // held beside kept weights
  size_t room() const;    // for kept weights
  bool make_room(size_t bytes, int64_t used);
  void yield(size_t bytes, size_t least);
  void drop(Entry& entry);
  Weight copy(const Key& key);
  std::optional<Weight> streamed_before(const Key& key);
  Weight stream(const Key& key);
  Weight in_slot(int slot);

  Device& device_;
  struct Range {
    size_t bytes = 0;
    int promises = 0;
  };
  std::map<const char*, Range> ranges_;
  std::map<Key, Entry> entries_;
  size_t bytes_ = 0;
  size_t most_others_ = 0;
  int64_t clock_ = 0, copied_ = 0, streamed_ = 0;
  Slot slots_[2];
  int next_slot_ = 0;
};

}  // namespace lacuna::cuda
