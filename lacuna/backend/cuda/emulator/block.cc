// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cuda/emulator/block.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "lacuna/backend/cuda/emulator/emulator.h"
#include "lacuna/backend/cuda/emulator/ptx_emulated.h"
#include "lacuna/core/error.h"

// Saves the callee-saved registers on the stack, stores the stack pointer at *save, goes on at
// `to`. ucontext would make two system calls per switch; a run makes millions.
extern "C" void lacuna_fiber_switch(void** save, void* to);
asm(R"(
.text
.p2align 4
.type lacuna_fiber_switch, @function
lacuna_fiber_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size lacuna_fiber_switch, .-lacuna_fiber_switch
)");

namespace lacuna::cuda::emulator {
namespace {

constexpr size_t kStackBytes = 64 << 10;
constexpr int kMaxThreads = 1024;
constexpr size_t kSavedRegisters = 6;

Block* g_block = nullptr;
int64_t g_loads = 0;

// Stacks and shared memory are kept from run to run.
unsigned char* stack_of(int thread) {
  static std::vector<std::unique_ptr<unsigned char[]>> stacks(kMaxThreads);
  auto& stack = stacks[static_cast<size_t>(thread)];
  if (!stack) stack = std::make_unique<unsigned char[]>(kStackBytes);
  return stack.get();
}

unsigned char* block_memory() {
  alignas(1024) static unsigned char bytes[kSharedBytes];
  return bytes;
}

}  // namespace

Block& block() {
  return *g_block;
}

uint64_t hash_bytes(const void* data, size_t bytes) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (size_t i = 0; i < bytes; i += 4) {
    uint32_t word;
    std::memcpy(&word, static_cast<const char*>(data) + i, 4);
    hash = (hash ^ word) * 0x100000001b3u;
  }
  return hash;
}

Block::Block(int num_threads, int shared_bytes, uint64_t seed)
    : threads(static_cast<size_t>(num_threads)),
      warps(static_cast<size_t>((num_threads + 31) / 32)),
      warp_groups(static_cast<size_t>((num_threads + 127) / 128)),
      rows(kSharedBytes / kRowBytes + 1),
      waits_(static_cast<size_t>(num_threads)),
      stalled_(static_cast<size_t>((num_threads + 31) / 32)),
      rng_(seed),
      cheap_state_(static_cast<uint32_t>(seed) | 1),
      shared_(block_memory()),
      shared_bytes_(shared_bytes) {
  // As 16-bit floats NaN, as integers -1: nothing a kernel can mistake for data.
  std::memset(shared_, 0xFF, kSharedBytes);
  for (int t = 0; t < num_threads; ++t) {
    const auto top = reinterpret_cast<uintptr_t>(stack_of(t) + kStackBytes - 64) & ~uintptr_t{15};
    auto* frame = reinterpret_cast<void**>(top) - kSavedRegisters;
    std::memset(frame, 0, kSavedRegisters * sizeof(void*));
    frame[kSavedRegisters] = reinterpret_cast<void*>(&Block::entry);
    threads[static_cast<size_t>(t)].stack_pointer = frame;
  }
}

void Block::entry() {
  Block& b = block();
  (*b.kernel_)();
  Thread& me = b.me();
  b.waits_[static_cast<size_t>(b.current)].done = true;
  if (!me.open_stores.empty() || !me.committed_stores.empty())
    b.fault(fmt::format("thread {} ends with TMA stores it has not waited for", b.current));
  if (!me.open_copies.empty() || !me.copy_groups.empty())
    b.fault(fmt::format("thread {} ends with cp.async copies in flight", b.current));
  if (!me.accumulators.empty())
    b.fault(fmt::format("thread {} ends with wgmma in flight", b.current));
  b.sleep({});
  std::abort();  // a finished fiber is never resumed
}

void Block::resume(int thread) {
  current = thread;
  in_fiber_ = true;
  lacuna_fiber_switch(&home_, threads[static_cast<size_t>(thread)].stack_pointer);
  in_fiber_ = false;
}

void Block::sleep(Wait wait) {
  Wait& mine = waits_[static_cast<size_t>(current)];
  wait.done = mine.done;
  mine = wait;
  lacuna_fiber_switch(&me().stack_pointer, home_);
}

void Block::fault(const std::string& what) {
  // Asynchronous work runs on the scheduler's own stack, where unwinding works.
  if (!in_fiber_) throw Error(what);
  fault_ = what;
  sleep({});
  std::abort();  // run() never resumes after a fault
}

void Block::land_one() {
  const size_t i = random() % in_flight_.size();
  std::swap(in_flight_[i], in_flight_.back());
  const std::function<void()> work = std::move(in_flight_.back());
  in_flight_.pop_back();
  work();
}

std::string Block::run(const std::function<void()>& kernel) {
  kernel_ = &kernel;
  const int n = static_cast<int>(threads.size());
  for (;;) {
    bool ran = false, left = false;
    for (int& rounds : stalled_)
      rounds = rounds > 0 ? rounds - 1 : (cheap_random() % 64 == 0 ? 12 : 0);
    const int start = static_cast<int>(random() % static_cast<uint32_t>(n));
    for (int i = 0; i < n; ++i) {
      const int t = (start + i) % n;
      const Wait& wait = waits_[static_cast<size_t>(t)];
      if (wait.done) continue;
      left = true;
      if (!wait.over()) continue;
      ran = true;
      // Now and then a thread falls behind, or a whole warp for many rounds: what runs between an
      // arrival and the wait that should have preceded it is else never seen.
      if (stalled_[static_cast<size_t>(t / 32)] > 0 || cheap_random() % 16 == 0) continue;
      resume(t);
      if (!fault_.empty()) return fault_;
    }
    if (!left) return left_behind();
    if (!ran && in_flight_.empty()) return deadlock();
    if (!ran) land_one();
    while (!in_flight_.empty() && random() % 4 == 0) land_one();
  }
}

std::string Block::deadlock() const {
  std::string text = "deadlock:";
  std::map<std::string, int> waits;
  for (const Wait& wait : waits_) {
    if (wait.done) continue;
    std::string what = "a warp or a named barrier";
    for (const auto& [at, barrier] : mbarriers_)
      if (wait.word == &barrier.phase)
        what =
            fmt::format("mbarrier at {} parity {} ({} phases done, {} arrivals and {} bytes short)",
                        at, wait.blocked, barrier.phase, barrier.pending, barrier.bytes);
    ++waits[what];
  }
  for (const auto& [what, count] : waits)
    text += fmt::format(" {} threads wait for {};", count, what);
  return text;
}

std::string Block::left_behind() {
  while (!stores.empty()) run_store(stores.begin()->first);
  if (!in_flight_.empty()) return "the block ended with TMA loads in flight";
  if (std::any_of(shared_ + shared_bytes_, shared_ + kSharedBytes,
                  [](unsigned char byte) { return byte != 0xFF; }))
    return fmt::format("shared memory written past the {} bytes of the block", shared_bytes_);
  for (int i = 0; i < 16; ++i)
    if (barriers[i].arrived != 0) return fmt::format("named barrier {} was left half full", i);
  int registers = 0;
  for (const WarpGroup& g : warp_groups) registers += g.registers * 128;
  constexpr int kAtLaunch = kSm90LaunchRegisters * kSm90Threads;
  if (threads.size() == kSm90Threads && registers > kAtLaunch)
    return fmt::format("{} registers, the block was launched with {}", registers, kAtLaunch);
  return fault_;
}

void Block::meet(Barrier& barrier, int id, int count, bool sync, bool yes) {
  if (barrier.arrived == 0) barrier.expected = count, barrier.all = true;
  if (barrier.expected != count || count % 32 != 0)
    fault(fmt::format("named barrier {}: {} threads here, {} elsewhere", id, count,
                      barrier.expected));
  barrier.all = barrier.all && yes;
  const uint32_t generation = barrier.generation;
  if (++barrier.arrived == count) {
    barrier.arrived = 0;
    barrier.result = barrier.all;
    ++barrier.generation;
  } else if (sync) {
    sleep({&barrier.generation, ~0u, generation});
  }
}

void Block::meet_warp(int operation, const std::function<void()>& act) {
  Warp& warp = my_warp();
  if (warp.arrived == 0) warp.operation = operation;
  if (warp.operation != operation)
    fault(fmt::format("warp {}: lanes execute different operations", current / 32));
  const uint32_t generation = warp.generation;
  if (++warp.arrived == 32) {
    warp.arrived = 0;
    if (act) act();
    ++warp.generation;
  } else {
    sleep({&warp.generation, ~0u, generation});
  }
}

void Block::meet_warp_group(const std::function<void()>& act) {
  WarpGroup& group = my_warp_group();
  const uint32_t generation = group.generation;
  if (++group.arrived == 128) {
    group.arrived = 0;
    act();
    ++group.generation;
  } else {
    sleep({&group.generation, ~0u, generation});
  }
}

MBarrier& Block::mbarrier(const uint64_t* b) {
  const auto at = static_cast<int32_t>(shared_address(b));
  if (at % 8 != 0) fault(fmt::format("mbarrier at {}, expected a multiple of 8", at));
  return mbarriers_[at];
}

void Block::fence_mbarriers() {
  for (auto& [at, barrier] : mbarriers_) barrier.fenced = true;
}

void Block::settle(MBarrier& barrier) {
  if (!barrier.live) fault("mbarrier used before its initialisation");
  if (barrier.pending < 0) fault("mbarrier: more arrivals than it was made for");
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  barrier.pending = barrier.count;
  ++barrier.phase;
}

std::string run(const Grid& grid, const GlobalMemory* memory, uint64_t seed,
                const std::function<void()>& kernel) {
  g_loads = 0;
  for (int y = 0; y < grid.blocks_y; ++y)
    for (int x = 0; x < grid.blocks; ++x) {
      Block one(grid.threads, grid.shared_bytes, seed + static_cast<uint64_t>(y * grid.blocks + x));
      one.x = x, one.y = y, one.grid_x = grid.blocks;
      one.memory = memory;
      g_block = &one;
      std::string fault;
      try {
        fault = one.run(kernel);
      } catch (const Error& e) {
        fault = e.what();
      }
      g_block = nullptr;
      g_loads += one.loads;
      if (!fault.empty())
        return grid.blocks_y == 1 ? fmt::format("block {}: {}", x, fault)
                                  : fmt::format("block {}, {}: {}", x, y, fault);
    }
  return {};
}

std::string run(int blocks, int num_threads, uint64_t seed, const std::function<void()>& kernel) {
  return run({.blocks = blocks, .threads = num_threads, .shared_bytes = kSharedBytes}, nullptr,
             seed, kernel);
}

int64_t loads_of_last_run() {
  return g_loads;
}

}  // namespace lacuna::cuda::emulator

namespace lacuna::cuda {

using emulator::block;

int thread_id() {
  return block().current;
}
int block_id() {
  return block().x;
}
int block_id_y() {
  return block().y;
}
int grid_blocks() {
  return block().grid_x;
}
unsigned char* shared_memory() {
  return block().shared();
}
uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(p) - block().shared());
}

void check_global(const void* p, size_t bytes, size_t alignment) {
  if (reinterpret_cast<uintptr_t>(p) % alignment != 0)
    block().fault(fmt::format("an access of {} bytes that is not aligned", bytes));
  const emulator::GlobalMemory* memory = block().memory;
  if (memory != nullptr && !memory->owns(p, bytes))
    block().fault(fmt::format("{} bytes at {} are not device memory", bytes, p));
}

namespace {
// What `lane` says. Two sets in turn: a fast lane may already write the next one.
template <typename T>
T exchange(T x, int lane, int operation) {
  emulator::Warp& warp = block().my_warp();
  uint64_t* values = warp.value[warp.generation & 1];
  std::memcpy(&values[block().lane()], &x, sizeof(x));
  block().meet_warp(operation, nullptr);
  std::memcpy(&x, &values[lane], sizeof(x));
  return x;
}
}  // namespace

float shuffle_xor(float x, int lanes) {
  return exchange(x, block().lane() ^ lanes, lanes);
}
int shuffle_xor(int x, int lanes) {
  return exchange(x, block().lane() ^ lanes, lanes);
}
double shuffle_xor(double x, int lanes) {
  return exchange(x, block().lane() ^ lanes, lanes);
}
int64_t shuffle_xor(int64_t x, int lanes) {
  return exchange(x, block().lane() ^ lanes, lanes);
}
int shuffle(int x, int from) {
  return exchange(x, from & 31, 106);
}
int broadcast_lane0(int x) {
  return exchange(x, 0, 100);
}
uint32_t ballot(bool yes) {
  emulator::Warp& warp = block().my_warp();
  uint64_t* values = warp.value[warp.generation & 1];
  values[block().lane()] = yes ? 1 : 0;
  block().meet_warp(105, nullptr);
  uint64_t bits = 0;
  for (int lane = 0; lane < 32; ++lane) bits |= values[lane] << lane;
  return static_cast<uint32_t>(bits);
}
void sync_warp() {
  block().meet_warp(101, nullptr);
}
void sync_block() {
  block().meet(block().barriers[0], 0, static_cast<int>(block().threads.size()), true, true);
}
void barrier_sync(int id, int threads) {
  block().meet(block().barriers[id], id, threads, true, true);
}
void barrier_arrive(int id, int threads) {
  block().meet(block().barriers[id], id, threads, false, true);
}
bool barrier_all(int id, int threads, bool yes) {
  emulator::Barrier& barrier = block().barriers[id];
  block().meet(barrier, id, threads, true, yes);
  return barrier.result;
}
void set_registers(int registers) {
  block().my_warp_group().registers = registers;
}

}  // namespace lacuna::cuda
