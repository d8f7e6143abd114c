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

Resident::Resident(Device& device) : device_(device) {
  device_.set_make_room([this](size_t bytes, size_t least) { yield(bytes, least); });
}

Resident::~Resident() {
  device_.set_make_room({});
}

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
  for (Slot& slot : slots_)
    if (slot.holds.data >= range->first && slot.holds.data < end) slot.holds = {};
  ranges_.erase(range);
  if (!ranges_.empty()) return;
  // Another network comes next, and has other needs.
  for (Slot& slot : slots_) slot = {};
  most_others_ = 0;
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

size_t Resident::others() const {
  return static_cast<size_t>(device_.use().held) - bytes_;
}

size_t Resident::room() const {
  const size_t taken = std::max(most_others_, others());
  return device_.limit() > taken ? device_.limit() - taken : 0;
}

// For memory that the device has no more room for: kept weights leave, those used longest ago
// first.
void Resident::yield(size_t bytes, size_t least) {
  most_others_ = std::max(most_others_, others() + bytes);
  std::map<int64_t, Entry*> leave;
  for (auto& [key, entry] : entries_)
    if (entry.memory != nullptr && entry.memory.use_count() == 1) leave[entry.used] = &entry;
  size_t freed = 0;
  for (const auto& [when, entry] : leave) {
    if (freed >= least) break;
    freed += entry->bytes;
    drop(*entry);
  }
}

// Room for `bytes` of a weight last used at `used`. What was used longest ago leaves first, but
// nothing that was used since: in a loop over more weights than fit, they would all be copied in
// every round. First uses (used = 0) may push out anything that is not in use.
bool Resident::make_room(size_t bytes, int64_t used) {
  const size_t most = room();
  if (bytes > most) return false;
  size_t kept = bytes_;
  std::map<int64_t, Entry*> leave;
  for (auto& [key, entry] : entries_)
    if (entry.memory != nullptr && entry.memory.use_count() == 1 &&
        (used == 0 || entry.used < used))
      leave[entry.used] = &entry;
  auto last = leave.begin();
  for (; last != leave.end() && kept > most - bytes; ++last) kept -= last->second->bytes;
  if (kept > most - bytes) return false;
  for (auto at = leave.begin(); at != last; ++at) drop(*at->second);
  return true;
}

// For this use alone, of memory that may change.
Resident::Weight Resident::copy(const Key& key) {
  auto memory = std::make_shared<DeviceMemory>(device_, key.bytes);
  device_.upload(memory->as<void>(), key.data, key.bytes);
  return Weight(*this, std::move(memory));
}

Resident::Weight Resident::in_slot(int slot) {
  Weight weight(*this, slots_[slot].memory);
  weight.slot_ = slot;
  next_slot_ = slot ^ 1;
  return weight;
}

// What a slot still holds: a feed-forward uses two weights in turn for every chunk of rows.
std::optional<Resident::Weight> Resident::streamed_before(const Key& key) {
  for (int i : {0, 1})
    if (slots_[i].holds.data == key.data && slots_[i].holds.bytes == key.bytes) return in_slot(i);
  return {};
}

// Two slots in turn: one is filled while what uses the other runs.
Resident::Weight Resident::stream(const Key& key) {
  const int slot = next_slot_;
  Slot& s = slots_[slot];
  s.holds = {};
  if (s.bytes < key.bytes) {
    s = {};
    s.memory = std::make_shared<DeviceMemory>(device_, key.bytes);
    s.bytes = key.bytes;
    device_.stream_done(slot);  // the memory is there from now on
  }
  device_.stream(slot, s.memory->as<void>(), key.data, key.bytes);
  s.holds = {key.data, key.bytes};
  ++streamed_;
  return in_slot(slot);
}

Resident::Weight Resident::get(const TensorView& w) {
  return get(w, Form::stored, span_bytes(w), {});
}

Resident::Weight Resident::get(const TensorView& w, Form form, size_t bytes, const Make& make) {
  const auto made = [&](const Weight& stored) {
    auto memory = std::make_shared<DeviceMemory>(device_, bytes);
    make(stored.data(), memory->as<void>());
    return memory;
  };
  const auto formed = [&](Weight stored) {
    return form == Form::stored ? std::move(stored) : Weight(*this, made(stored));
  };
  if (w.device == lacuna::Device::cuda) return formed(Weight(*this, w.data));
  const Key key{static_cast<const char*>(w.data), span_bytes(w), form};
  if (!is_constant(w)) return formed(copy(key));
  Entry& entry = entries_[key];
  const int64_t used = std::exchange(entry.used, ++clock_);
  if (entry.memory != nullptr) return Weight(*this, entry.memory);
  if (auto again = streamed_before(key)) return formed(*std::move(again));
  if (!make_room(bytes, used)) return formed(stream(key));
  // Beside kernels: only what uses the weight waits for it.
  auto memory = std::make_shared<DeviceMemory>(device_, device_.load(key.data, key.bytes));
  if (form != Form::stored) memory = made(Weight(*this, memory));
  entry.memory = memory;
  entry.bytes = bytes;
  bytes_ += bytes;
  ++copied_;
  return Weight(*this, std::move(memory));
}

}  // namespace lacuna::cuda
