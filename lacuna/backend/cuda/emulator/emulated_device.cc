// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cuda/emulator/emulated_device.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <span>
#include <string>

#include "lacuna/backend/cuda/attend_sm80.cuh"
#include "lacuna/backend/cuda/attend_sm90.cuh"
#include "lacuna/backend/cuda/emulator/emulator.h"
#include "lacuna/backend/cuda/emulator/global_memory.h"
#include "lacuna/backend/cuda/emulator/kernels.h"
#include "lacuna/backend/cuda/emulator/library.h"
#include "lacuna/core/error.h"

namespace lacuna::cuda::emulator {
namespace {

using Maps = const TensorMap (&)[4];

template <class T, int kDim, Votes kVotes>
void run_kernel(Family family, Maps maps, const AttendArgs& args) {
  if (family == Family::sm90) {
    attend_sm90<T, kDim, kVotes>(maps[0], maps[1], maps[2], maps[3], args);
  } else {
    attend_sm80<T, kDim, kVotes>(args);
  }
}

template <class T, int kDim>
void choose_votes(const KernelId& id, Maps maps, const AttendArgs& args) {
  switch (id.votes) {
    case Votes::none:
      return run_kernel<T, kDim, Votes::none>(id.family, maps, args);
    case Votes::per_tile:
      return run_kernel<T, kDim, Votes::per_tile>(id.family, maps, args);
    case Votes::per_slot:
      return run_kernel<T, kDim, Votes::per_slot>(id.family, maps, args);
  }
}

template <class T>
void choose_dim(const KernelId& id, Maps maps, const AttendArgs& args) {
  return id.head_dim == 64 ? choose_votes<T, 64>(id, maps, args)
                           : choose_votes<T, 128>(id, maps, args);
}

const Kernel& find_kernel(const char* module, const char* name) {
  const struct {
    const char* name;
    std::span<const Kernel> kernels;
  } modules[] = {
#define LACUNA_MODULE(m) {#m, m##_kernels()},
      LACUNA_CUDA_MODULES(LACUNA_MODULE)
#undef LACUNA_MODULE
  };
  for (const auto& m : modules)
    for (const Kernel& kernel : m.kernels)
      if (std::strcmp(m.name, module) == 0 && std::strcmp(kernel.name, name) == 0) return kernel;
  fail("emulator: no kernel {} in module {}, expected one of its list", name, module);
}

class EmulatedDevice final : public Device {
 public:
  EmulatedDevice(Family family, uint64_t seed, bool library, Transfers* transfers)
      : family_(family), seed_(seed), library_(library), transfers_(transfers) {}

  std::string description() const override {
    return family_ == Family::sm90 ? "emulated sm90" : "emulated sm80";
  }
  Family family() const override { return family_; }
  int multiprocessors() const override { return 1; }

  void synchronize() override {}
  bool gemm(const Gemm& g) override { return library_ && library_gemm(g); }
  size_t free_memory() const override { return size_t{1} << 30; }

  void launch(const char* module, const char* name, const Grid& grid, const void* args,
              size_t bytes) override {
    const Kernel& kernel = find_kernel(module, name);
    LACUNA_CHECK(bytes == kernel.args_bytes && grid.threads == kernel.threads,
                 "{}: {} bytes of arguments and {} threads, expected {} and {}", name, bytes,
                 grid.threads, kernel.args_bytes, kernel.threads);
    LACUNA_CHECK(grid.blocks_y <= 65535 && grid.shared_bytes <= kMostSharedBytes,
                 "{}: {} blocks in y with {} bytes of shared memory, expected 65535 and {} at most",
                 name, grid.blocks_y, grid.shared_bytes, kMostSharedBytes);
    alignas(64) unsigned char copy[4096];
    LACUNA_CHECK(bytes <= sizeof(copy), "{}: {} bytes of arguments, expected at most {}", name,
                 bytes, sizeof(copy));
    std::memcpy(copy, args, bytes);
    std::string fault = run(grid, &memory_, seed_++, [&] { kernel.run(copy); });
    if (fault.empty()) fault = memory_.damage();
    LACUNA_CHECK(fault.empty(), "{}: {}", name, fault);
  }

  TensorMap tensor_map(const void* base, int64_t channels, int64_t tokens, int64_t heads,
                       int64_t token_stride, int64_t head_stride) override {
    TensorMap map;
    const std::string why =
        make_tensor_map(base, channels, tokens, heads, token_stride, head_stride, &map);
    if (!why.empty()) throw Error(why);
    return map;
  }

  void launch(const KernelId& id, Maps maps, const AttendArgs& args) override {
    const std::string fault =
        run(std::min(2, args.num_jobs), kernel_threads(id.family), seed_++, [&] {
          if (id.dtype == AttendDType::bf16) {
            choose_dim<Bf16>(id, maps, args);
          } else {
            choose_dim<F16>(id, maps, args);
          }
        });
    LACUNA_CHECK(fault.empty(), "{}: {}", id.name(), fault);
  }
  double attend_ms() override { return 0.0; }

 protected:
  void* take(size_t bytes, bool) override { return memory_.allocate(bytes); }
  void give_back(void* p) override { memory_.release(p); }
  void copy_in(void* to, const void* from, size_t bytes) override {
    LACUNA_CHECK(memory_.owns(to, bytes), "emulator: upload of {} bytes, expected device memory",
                 bytes);
    std::memcpy(to, from, bytes);
    note(Transfer::in, from, bytes);
  }
  void copy_out(void* to, const void* from, size_t bytes) override {
    std::memcpy(to, from, bytes);
    note(Transfer::out, to, bytes);
  }
  void copy_beside(void* to, const void* from, size_t bytes) override {
    LACUNA_CHECK(memory_.owns(to, bytes), "emulator: copy of {} bytes, expected device memory",
                 bytes);
    std::memcpy(to, from, bytes);
    note(Transfer::beside, from, bytes);
  }

 private:
  void note(Transfer::Kind kind, const void* host, size_t bytes) {
    if (transfers_ != nullptr) transfers_->push_back({kind, host, bytes});
  }

  Family family_;
  uint64_t seed_;
  bool library_;
  Transfers* transfers_;
  GlobalMemory memory_;
};

}  // namespace

std::unique_ptr<Device> make_emulated_device(Family family, uint64_t seed, bool library,
                                             Transfers* transfers) {
  return std::make_unique<EmulatedDevice>(family, seed, library, transfers);
}

}  // namespace lacuna::cuda::emulator
