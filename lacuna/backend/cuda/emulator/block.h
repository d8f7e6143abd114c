// SPDX-License-Identifier: Apache-2.0
// One emulated thread block: fibers, barriers, shared memory with a shadow, asynchronous work.
//
// What it finds: deadlock (nothing can run and nothing is in flight); wrong phase parity and
// missing waits (an operand whose load has not landed, or whose barrier phase this thread has not
// waited for); stages overwritten while wgmma or a TMA store still reads them; over-arrival and
// byte counts that never match; plain stores that reach TMA without fence.proxy.async; accumulators
// or A registers touched while wgmma is in flight, or without wgmma.fence before it; warps and
// warpgroups that do not act together; misaligned tiles; shared memory left busy at the end; writes
// past the block's share of it; mbarriers that TMA gets unfenced; global memory that is not the
// device's. Exponentials, logarithms and sums of tensor cores are as far off as a GPU may be.
// Swizzle and descriptor distances are decoded as the hardware does, so a mismatch between what
// TMA writes and wgmma reads gives wrong numbers.
// What it cannot find: memory order between plain accesses, registers, bank conflicts, speed, and
// whether the driver's encoding of tensor maps is what we think.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "lacuna/backend/cuda/emulator/global_memory.h"
#include "lacuna/backend/cuda/launch.h"

namespace lacuna::cuda::emulator {

inline constexpr int kSharedBytes = 232448;  // most a block of sm_90 can have: 227 KiB
inline constexpr int kRowBytes = 128;        // a row of the swizzle atom: the shadow's grain

// A thread sleeps while (*word & mask) == blocked. Kept apart from Thread: the scheduler walks all
// of them in every round, and they should stay in L1.
struct Wait {
  const uint32_t* word = nullptr;
  uint32_t mask = 0, blocked = 0;
  bool done = false;  // the thread has ended
  bool over() const { return word == nullptr || (*word & mask) != blocked; }
};

struct Barrier {
  uint32_t generation = 0;
  int arrived = 0, expected = 0;
  bool all = true, result = true;
};

struct MBarrier {
  bool live = false, fenced = false;
  int64_t count = 0, pending = 0, bytes = 0;
  uint32_t phase = 0;  // completed phases
};

struct Row {
  int in_flight = 0;     // loads not landed (or not waited for, cp.async)
  int readers = 0;       // wgmma products and TMA stores that have yet to read it
  int unfenced = 0;      // plain stores that no proxy fence has followed
  int32_t barrier = -1;  // of the last load
  uint32_t phase = 0;    // which that load completes
};

// An accumulator in flight: the truth is in `value`, the kernel's array holds NaN.
struct Accumulator {
  float* registers;
  std::vector<float> value;
  int64_t last_product;
};

struct Registers {  // A operands seen so far, for checks of wgmma.fence
  const uint32_t* at;
  uint64_t hash_at_fence;
};

struct Thread {
  void* stack_pointer = nullptr;
  std::map<int32_t, uint32_t> observed;  // mbarrier -> completed phases seen by its last wait
  std::vector<uint32_t> unfenced_rows;
  // cp.async
  struct Copy {
    uint32_t to;
    unsigned char data[16];
    bool landed;
  };
  std::vector<Copy> open_copies;
  std::deque<std::vector<Copy>> copy_groups;
  // TMA stores: ids in Block::stores
  std::vector<int64_t> open_stores, committed_stores;
  // wgmma
  bool fenced = false;
  int64_t products = 0;
  std::vector<int64_t> group_ends;
  std::vector<Accumulator> accumulators;
  std::vector<Registers> a_registers;
};

struct Product {
  int n = 0;
  bool half = false;  // fp16
  bool accumulate = false;
  bool a_in_registers = false;
  uint64_t a = 0, b = 0;
  const uint32_t* a_registers[128] = {};
  uint64_t a_hash[128] = {};
  float* d[128] = {};
  std::vector<uint32_t> rows;  // read by it
  int issued = 0;
};

struct Warp {
  uint32_t generation = 0;
  int arrived = 0;
  int operation = 0;
  uint64_t value[2][32];
  const void* in[2][32];
  void* out[32];
};

struct WarpGroup {
  uint32_t generation = 0;
  int arrived = 0;
  int registers = kSm90LaunchRegisters;
  int64_t first_product = 0;
  std::deque<Product> products;
};

class Block {
 public:
  Block(int threads, int shared_bytes, uint64_t seed);

  int x = 0, y = 0, grid_x = 1;
  const GlobalMemory* memory = nullptr;  // what global accesses are checked against

  // Scheduling.
  std::string run(const std::function<void()>& kernel);
  [[noreturn]] void fault(const std::string& what);
  void sleep(Wait wait);
  int current = 0;
  Thread& me() { return threads[static_cast<size_t>(current)]; }
  Warp& my_warp() { return warps[static_cast<size_t>(current / 32)]; }
  WarpGroup& my_warp_group() { return warp_groups[static_cast<size_t>(current / 128)]; }
  int lane() const { return current % 32; }
  uint32_t random() { return static_cast<uint32_t>(rng_()); }
  void later(std::function<void()> work) { in_flight_.push_back(std::move(work)); }
  // The last lane to arrive runs `act` before the others go on; all must name the same operation.
  void meet_warp(int operation, const std::function<void()>& act);
  void meet_warp_group(const std::function<void()>& act);
  void meet(Barrier& barrier, int id, int count, bool sync, bool yes);

  // Shared memory.
  unsigned char* shared() { return shared_; }
  int shared_bytes() const { return shared_bytes_; }
  Row& row(uint32_t address) { return rows[address / kRowBytes]; }
  MBarrier& mbarrier(const uint64_t* b);
  void fence_mbarriers();
  void settle(MBarrier& barrier);
  void check_readable(uint32_t address, const char* who, bool every_phase);
  void run_store(int64_t id);

  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<WarpGroup> warp_groups;
  Barrier barriers[16];
  std::vector<Row> rows;
  std::map<int64_t, std::function<void()>> stores;  // TMA stores that have yet to read
  int64_t next_store = 0;
  int64_t loads = 0;

 private:
  void resume(int thread);
  void land_one();
  std::string deadlock() const;
  std::string left_behind();
  static void entry();

  const std::function<void()>* kernel_ = nullptr;
  // Xorshift: drawn for every thread in every round.
  uint32_t cheap_random() {
    cheap_state_ ^= cheap_state_ << 13;
    cheap_state_ ^= cheap_state_ >> 17;
    return (cheap_state_ ^= cheap_state_ << 5) >> 7;
  }
  std::vector<Wait> waits_;   // by thread
  std::vector<int> stalled_;  // by warp: rounds to sit out
  std::mt19937_64 rng_;
  uint32_t cheap_state_;
  std::vector<std::function<void()>> in_flight_;
  std::map<int32_t, MBarrier> mbarriers_;  // by shared address
  unsigned char* shared_;
  int shared_bytes_;
  std::string fault_;
  void* home_ = nullptr;
  bool in_fiber_ = false;
};

// The block that runs now.
Block& block();

inline uint32_t swizzle_128b(uint32_t address) {
  return address ^ ((address >> 3) & 0x70);
}
uint64_t hash_bytes(const void* data, size_t bytes);

}  // namespace lacuna::cuda::emulator
