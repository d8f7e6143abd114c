// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cuda/resident.h"

#include <algorithm>
#include <utility>

#include "lacuna/core/error.h"

namespace lacuna::cuda {
namespace {

// Bytes from the first element to the last, both included.
size_t span_bytes(const TensorView& w) {
  int64_t last = 0;
  for (int i = 0; i < w.rank; ++i) {
    LACUNA_CHECK(w.stride[i] >= 0, "cuda: weight {} with stride {}, expected 0 or more",
                 w.describe(), w.stride[i]);
    last += (w.shape[i] - 1) * w.stride[i];
  }
  return static_cast<size_t>(storage_bytes(w.dtype, last + 1));
}

}  // namespace

Resident::~Resident() = default;

Resident::Weight::~Weight() {
  if (slot_ >= 0) owner_.device_.stream_done(slot_);
}

Resident::Weight::Weight(Weight&& other) noexcept
    : owner_(other.owner_),
      data_(other.data_),
      slot_(std::exchange(other.slot_, -1)),
      memory_(std::move(other.memory_)) {}

void Resident::constant(const void* begin, size_t bytes) {
  if (bytes == 0) return;
  Range& range = ranges_[static_cast<const char*>(begin)];
  range.bytes = std::max(range.bytes, bytes);
  ++range.promises;
}

void Resident::forget(const void* begin) {
  const auto range = ranges_.find(static_cast<const char*>(begin));
  if (range == ranges_.end() || --range->second.promises > 0) return;
  const char* end = range->first + range->second.bytes;
  // Memory is released in the order of the stream: what was queued with it still finds it.
  auto at = entries_.lower_bound({range->first, 0, Form::stored});
  while (at != entries_.end() && at->first.data < end) {
    drop(at->second);
    at = entries_.erase(at);
  }
  ranges_.erase(range);
}

bool Resident::is_constant(const TensorView& w) const {
  const auto* data = static_cast<const char*>(w.data);
  const auto next = ranges_.upper_bound(data);
  if (w.device != lacuna::Device::cpu || next == ranges_.begin()) return false;
  const auto& [begin, range] = *std::prev(next);
  return data + span_bytes(w) <= begin + range.bytes;
}

void Resident::drop(Entry& entry) {
  if (entry.memory == nullptr) return;
  entry.memory.reset();
  bytes_ -= entry.bytes;
}

// Room for `bytes` of a weight last used at `used`. What was used longest ago leaves first, but
// nothing that was used since: in a loop over more weights than fit, they would all be copied in
// every round. First uses (used = 0) may push out anything.
bool Resident::make_room(size_t bytes, int64_t used) {
  if (bytes > budget_) return false;
  size_t free = budget_ - bytes_;
  std::map<int64_t, Entry*> leave;
  for (auto& [key, entry] : entries_)
    if (entry.memory != nullptr && (used == 0 || entry.used < used)) leave[entry.used] = &entry;
  for (const auto& [when, entry] : leave) {
    if (free >= bytes) break;
    free += entry->bytes;
  }
  if (free < bytes) return false;
  for (const auto& [when, entry] : leave) {
    if (budget_ - bytes_ >= bytes) break;
    drop(*entry);
  }
  return true;
}

Resident::Weight Resident::upload(const Key& key, bool stream) {
  if (!stream) {
    auto memory = std::make_unique<DeviceMemory>(device_, key.bytes);
    device_.upload(memory->as<void>(), key.data, key.bytes);
    Weight weight(*this, memory->as<void>());
    weight.memory_ = std::move(memory);
    return weight;
  }
  // Two slots in turn: one is filled while what uses the other runs.
  const int slot = next_slot_;
  next_slot_ ^= 1;
  Slot& s = slots_[slot];
  if (s.bytes < key.bytes) {
    s.memory.reset();
    s.memory = std::make_unique<DeviceMemory>(device_, key.bytes);
    s.bytes = key.bytes;
    device_.stream_done(slot);  // the memory is there from now on
  }
  device_.stream(slot, s.memory->as<void>(), key.data, key.bytes);
  Weight weight(*this, s.memory->as<void>());
  weight.slot_ = slot;
  return weight;
}

Resident::Weight Resident::get(const TensorView& w) {
  return get(w, Form::stored, span_bytes(w), {});
}

Resident::Weight Resident::get(const TensorView& w, Form form, size_t bytes, const Make& make) {
  const auto made = [&](Weight stored, std::unique_ptr<DeviceMemory> memory) {
    make(stored.data(), memory->as<void>());
    Weight weight(*this, memory->as<void>());
    weight.memory_ = std::move(memory);
    return weight;
  };
  const auto room = [&] { return std::make_unique<DeviceMemory>(device_, bytes); };
  if (w.device == lacuna::Device::cuda) {
    Weight stored(*this, w.data);
    return form == Form::stored ? std::move(stored) : made(std::move(stored), room());
  }
  const Key key{static_cast<const char*>(w.data), span_bytes(w), form};
  if (!is_constant(w)) {
    Weight stored = upload(key, false);
    return form == Form::stored ? std::move(stored) : made(std::move(stored), room());
  }
  Entry& entry = entries_[key];
  const int64_t used = std::exchange(entry.used, ++clock_);
  if (entry.memory == nullptr) {
    if (!make_room(bytes, used)) {
      ++streamed_;
      Weight stored = upload(key, true);
      return form == Form::stored ? std::move(stored) : made(std::move(stored), room());
    }
    Weight weight = upload(key, false);
    entry.memory = form == Form::stored ? std::move(weight.memory_)
                                        : std::move(made(std::move(weight), room()).memory_);
    entry.bytes = bytes;
    bytes_ += bytes;
    ++copied_;
  }
  return Weight(*this, entry.memory->as<void>());
}

}  // namespace lacuna::cuda
