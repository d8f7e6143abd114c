// SPDX-License-Identifier: Apache-2.0
// Shared memory of an emulated block: mbarriers, TMA, cp.async, plain stores, and their shadow.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "lacuna/backend/cuda/emulator/block.h"
#include "lacuna/backend/cuda/emulator/emulator.h"
#include "lacuna/backend/cuda/emulator/ptx_emulated.h"

namespace lacuna::cuda {
namespace emulator {
namespace {

constexpr int kBoxRows = 64, kBoxColumns = 64;
constexpr uint32_t kBoxBytes = kBoxRows * kBoxColumns * 2;

// What a TensorMap holds here.
struct Geometry {
  unsigned char* base;
  int64_t size[3];    // channels, tokens, heads
  int64_t stride[3];  // in elements
};
static_assert(sizeof(Geometry) <= sizeof(TensorMap));

Geometry geometry(const TensorMap* map) {
  Geometry g;
  std::memcpy(&g, map, sizeof(g));
  return g;
}

// Element of a box, or null where it lies outside the tensor.
unsigned char* element_at(const Geometry& g, int64_t channel, int64_t token, int64_t head) {
  if (channel < 0 || channel >= g.size[0] || token < 0 || token >= g.size[1] || head < 0 ||
      head >= g.size[2])
    return nullptr;
  return g.base + 2 * (channel * g.stride[0] + token * g.stride[1] + head * g.stride[2]);
}

void check_box(uint32_t address) {
  if (address % 1024 != 0)
    block().fault(
        fmt::format("TMA box at {}: the swizzle pattern starts at multiples of 1024", address));
  if (address + kBoxBytes > kSharedBytes) block().fault("TMA box outside shared memory");
}

}  // namespace

std::string make_tensor_map(const void* base, int64_t channels, int64_t tokens, int64_t heads,
                            int64_t token_stride, int64_t head_stride, TensorMap* map) {
  if (reinterpret_cast<uintptr_t>(base) % 16 != 0) return "tensor map: base not 16-byte aligned";
  if (token_stride * 2 % 16 != 0 || head_stride * 2 % 16 != 0)
    return "tensor map: strides not multiples of 16 bytes";
  for (const int64_t stride : {token_stride, head_stride})
    if (stride < 1 || stride >= int64_t{1} << 39)
      return "tensor map: strides outside 1 to 2^40 bytes";
  if (channels < 1 || tokens < 1 || heads < 1) return "tensor map: an empty dimension";
  const Geometry g{static_cast<unsigned char*>(const_cast<void*>(base)),
                   {channels, tokens, heads},
                   {1, token_stride, head_stride}};
  std::memset(map, 0, sizeof(*map));
  std::memcpy(map, &g, sizeof(g));
  return {};
}

// every_phase: this thread itself must have waited for the load's phase, and no later load may be
// under way.
void Block::check_readable(uint32_t address, const char* who, bool every_phase) {
  const Row& r = row(address);
  if (r.in_flight > 0)
    fault(
        fmt::format("{} reads shared row {} while a load is in flight", who, address / kRowBytes));
  if (!every_phase) return;
  if (r.barrier < 0)
    fault(fmt::format("{} reads shared row {} that no load has filled", who, address / kRowBytes));
  const auto seen = me().observed.find(r.barrier);
  if (seen == me().observed.end() || seen->second != r.phase)
    fault(fmt::format("{} reads shared row {} without having waited for phase {} of mbarrier {}",
                      who, address / kRowBytes, r.phase, r.barrier));
}

void Block::run_store(int64_t id) {
  const auto at = stores.find(id);
  if (at == stores.end()) return;
  const std::function<void()> work = std::move(at->second);
  stores.erase(at);
  work();
}

}  // namespace emulator

using emulator::block;
using emulator::kRowBytes;

void mbarrier_init(uint64_t* b, uint32_t arrivals) {
  emulator::MBarrier& barrier = block().mbarrier(b);
  if (barrier.live) block().fault("mbarrier initialised twice");
  barrier = {.live = true, .count = arrivals, .pending = arrivals};
}
void mbarrier_init_fence() {
  block().fence_mbarriers();
}
void mbarrier_arrive(uint64_t* b) {
  emulator::MBarrier& barrier = block().mbarrier(b);
  --barrier.pending;
  block().settle(barrier);
}
void mbarrier_arrive_expect(uint64_t* b, uint32_t bytes) {
  emulator::MBarrier& barrier = block().mbarrier(b);
  barrier.bytes += bytes;
  --barrier.pending;
  block().settle(barrier);
}
void mbarrier_wait(uint64_t* b, uint32_t parity) {
  emulator::MBarrier& barrier = block().mbarrier(b);
  if (!barrier.live) block().fault("mbarrier used before its initialisation");
  if (parity > 1) block().fault(fmt::format("mbarrier parity {}, expected 0 or 1", parity));
  // The phase that runs has parity `phase & 1`; waiting for the other one returns at once.
  if ((barrier.phase & 1) == parity) block().sleep({&barrier.phase, 1, parity});
  block().me().observed[static_cast<int32_t>(shared_address(b))] = barrier.phase;
}

void tma_load(void* to, const TensorMap* map, uint64_t* full, int channel, int token, int head) {
  emulator::Block& b = block();
  const uint32_t address = shared_address(to);
  emulator::check_box(address);
  const auto barrier_at = static_cast<int32_t>(shared_address(full));
  emulator::MBarrier& barrier = b.mbarrier(full);
  if (!barrier.fenced) b.fault("TMA load on an mbarrier without fence.mbarrier_init");
  ++b.loads;
  for (int r = 0; r < emulator::kBoxRows; ++r) {
    emulator::Row& row = b.row(address + r * kRowBytes);
    if (row.in_flight > 0 || row.readers > 0)
      b.fault(fmt::format("TMA load overwrites shared row {} that is still {}",
                          (address + r * kRowBytes) / kRowBytes,
                          row.readers > 0 ? "being read" : "being loaded"));
    if (row.unfenced > 0) b.fault("TMA load after plain stores without fence.proxy.async");
    ++row.in_flight;
    row.barrier = barrier_at;
    row.phase = barrier.phase + 1;
  }
  const emulator::Geometry g = emulator::geometry(map);
  b.later([&b, &barrier, g, address, channel, token, head] {
    for (int r = 0; r < emulator::kBoxRows; ++r) {
      for (int c = 0; c < emulator::kBoxColumns; ++c) {
        uint16_t value = 0;  // outside the tensor
        const unsigned char* from = emulator::element_at(g, channel + c, token + r, head);
        if (from != nullptr) std::memcpy(&value, from, 2);
        const uint32_t at =
            emulator::swizzle_128b(address + static_cast<uint32_t>(r * kRowBytes + c * 2));
        std::memcpy(b.shared() + at, &value, 2);
      }
      --b.row(address + r * kRowBytes).in_flight;
    }
    barrier.bytes -= emulator::kBoxBytes;
    b.settle(barrier);
  });
}

void tma_store(const TensorMap* map, const void* from, int channel, int token, int head) {
  emulator::Block& b = block();
  const uint32_t address = shared_address(from);
  emulator::check_box(address);
  for (int r = 0; r < emulator::kBoxRows; ++r) {
    emulator::Row& row = b.row(address + r * kRowBytes);
    if (row.unfenced > 0) b.fault("TMA store of plain stores without fence.proxy.async");
    if (row.in_flight > 0) b.fault("TMA store of a row that is being loaded");
    ++row.readers;
  }
  const emulator::Geometry g = emulator::geometry(map);
  const int64_t id = b.next_store++;
  b.stores[id] = [&b, g, address, channel, token, head] {
    for (int r = 0; r < emulator::kBoxRows; ++r) {
      for (int c = 0; c < emulator::kBoxColumns; ++c) {
        unsigned char* to = emulator::element_at(g, channel + c, token + r, head);
        const uint32_t at =
            emulator::swizzle_128b(address + static_cast<uint32_t>(r * kRowBytes + c * 2));
        if (to != nullptr) std::memcpy(to, b.shared() + at, 2);
      }
      --b.row(address + r * kRowBytes).readers;
    }
  };
  b.me().open_stores.push_back(id);
}
void tma_store_commit() {
  emulator::Thread& me = block().me();
  me.committed_stores.insert(me.committed_stores.end(), me.open_stores.begin(),
                             me.open_stores.end());
  me.open_stores.clear();
}
void tma_store_wait_read() {
  emulator::Thread& me = block().me();
  for (int64_t id : me.committed_stores) block().run_store(id);
  me.committed_stores.clear();
}

void store_shared(uint32_t address, uint32_t x) {
  emulator::Block& b = block();
  if (address % 4 != 0 || address + 4 > emulator::kSharedBytes)
    b.fault(fmt::format("st.shared at {}", address));
  emulator::Row& row = b.row(address);
  if (row.in_flight > 0 || row.readers > 0)
    b.fault(fmt::format("st.shared into row {} that asynchronous work still uses",
                        address / kRowBytes));
  ++row.unfenced;
  b.me().unfenced_rows.push_back(address);
  std::memcpy(b.shared() + address, &x, 4);
}
void fence_proxy_async() {
  emulator::Thread& me = block().me();
  for (uint32_t address : me.unfenced_rows) --block().row(address).unfenced;
  me.unfenced_rows.clear();
}

void copy_async(uint32_t to, const void* from, int bytes) {
  emulator::Block& b = block();
  if (to % 16 != 0 || to + 16 > static_cast<uint32_t>(b.shared_bytes()))
    b.fault(fmt::format("cp.async to {}", to));
  if (bytes > 0) check_global(from, static_cast<size_t>(bytes), 16);
  emulator::Thread::Copy copy{to, {}, false};
  if (bytes > 0) std::memcpy(copy.data, from, static_cast<size_t>(bytes));
  // At once or at the wait: whoever still reads the old data, or already the new, gets it wrong.
  if (b.random() % 2 == 0) {
    std::memcpy(b.shared() + to, copy.data, 16);
    copy.landed = true;
  }
  ++b.row(to).in_flight;
  b.me().open_copies.push_back(copy);
}
void copy_async_commit() {
  emulator::Thread& me = block().me();
  me.copy_groups.push_back(std::move(me.open_copies));
  me.open_copies.clear();
}
void copy_async_wait_for(int pending) {
  emulator::Block& b = block();
  auto& groups = b.me().copy_groups;
  while (static_cast<int>(groups.size()) > pending) {
    for (const auto& copy : groups.front()) {
      if (!copy.landed) std::memcpy(b.shared() + copy.to, copy.data, 16);
      --b.row(copy.to).in_flight;
    }
    groups.pop_front();
  }
}

}  // namespace lacuna::cuda
