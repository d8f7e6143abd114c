// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cuda/device.h"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "lacuna/core/error.h"

namespace lacuna::cuda {

void* Device::allocate(size_t bytes, bool beside) {
  const auto fits = [&] { return bytes <= limit_ && bytes_held_ <= limit_ - bytes; };
  if (!fits() && make_room_ && bytes <= limit_) make_room_(bytes, bytes_held_ + bytes - limit_);
  LACUNA_CHECK(fits(),
               "cuda: {} bytes of device memory beside {} in use, expected at most {} together",
               bytes, bytes_held_, limit_);
  void* p = take(bytes, beside);
  if (p == nullptr && make_room_) {
    make_room_(bytes, bytes);
    p = take(bytes, beside);
  }
  LACUNA_CHECK(p != nullptr,
               "cuda: {} bytes of device memory beside {} in use, expected them to be free", bytes,
               bytes_held_);
  held_[static_cast<const char*>(p)] = bytes;
  bytes_held_ += bytes;
  use_.most = std::max(use_.most, static_cast<int64_t>(bytes_held_));
  return p;
}

void Device::release(void* p) {
  const auto at = held_.find(static_cast<const char*>(p));
  if (at == held_.end()) return;
  bytes_held_ -= at->second;
  held_.erase(at);
  give_back(p);
}

bool Device::owns(const void* p) const {
  const auto* at = static_cast<const char*>(p);
  const auto next = held_.upper_bound(at);
  return next != held_.begin() && at < std::prev(next)->first + std::prev(next)->second;
}

void Device::upload(void* to, const void* from, size_t bytes) {
  use_.to_backend += static_cast<int64_t>(bytes);
  copy_in(to, from, bytes);
}

void Device::upload(void* to, std::span<const UploadPart> parts) {
  size_t bytes = 0;
  for (const UploadPart& part : parts) bytes = std::max(bytes, part.offset + part.bytes);
  packed_.resize(std::max(packed_.size(), bytes));
  for (const UploadPart& part : parts)
    if (part.bytes > 0) std::memcpy(packed_.data() + part.offset, part.from, part.bytes);
  if (bytes > 0) upload(to, packed_.data(), bytes);
}

void Device::download(void* to, const void* from, size_t bytes) {
  use_.to_host += static_cast<int64_t>(bytes);
  copy_out(to, from, bytes);
}

void* Device::load(const void* from, size_t bytes) {
  void* p = allocate(bytes, true);
  use_.to_backend += static_cast<int64_t>(bytes);
  copy_beside(p, from, bytes);
  return p;
}

void Device::stream(int slot, void* to, const void* from, size_t bytes) {
  use_.to_backend += static_cast<int64_t>(bytes);
  wait_for_slot(slot);
  copy_beside(to, from, bytes);
}

Backend::MemoryUse Device::use() const {
  Backend::MemoryUse use = use_;
  use.limit = static_cast<int64_t>(std::min<size_t>(limit_, INT64_MAX));
  use.held = static_cast<int64_t>(bytes_held_);
  return use;
}

}  // namespace lacuna::cuda
