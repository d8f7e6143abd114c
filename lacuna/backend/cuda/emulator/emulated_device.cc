// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cuda/emulator/emulated_device.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>

#include "lacuna/backend/cuda/attend_sm80.cuh"
#include "lacuna/backend/cuda/attend_sm90.cuh"
#include "lacuna/backend/cuda/emulator/emulator.h"
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

class EmulatedDevice final : public Device {
 public:
  EmulatedDevice(Family family, uint64_t seed) : family_(family), seed_(seed) {}

  std::string description() const override {
    return family_ == Family::sm90 ? "emulated sm90" : "emulated sm80";
  }
  Family family() const override { return family_; }

  // Poisoned: what a kernel does not write is NaN.
  void* allocate(size_t bytes) override {
    const size_t size = (bytes + 255) / 256 * 256;
    void* p = std::aligned_alloc(256, size);
    LACUNA_CHECK(p != nullptr, "emulator: {} bytes, expected that much memory", bytes);
    std::memset(p, 0xFF, size);
    return p;
  }
  void release(void* p) override { std::free(p); }
  void upload(void* to, const void* from, size_t bytes) override { std::memcpy(to, from, bytes); }
  void download(void* to, const void* from, size_t bytes) override { std::memcpy(to, from, bytes); }

  TensorMap tensor_map(const void* base, int64_t channels, int64_t tokens, int64_t heads,
                       int64_t token_stride, int64_t head_stride) override {
    TensorMap map;
    const std::string why =
        make_tensor_map(base, channels, tokens, heads, token_stride, head_stride, &map);
    if (!why.empty()) throw Error(why);
    return map;
  }

  double launch(const KernelId& id, Maps maps, const AttendArgs& args) override {
    const std::string fault =
        run(std::min(2, args.num_jobs), kernel_threads(id.family), seed_++, [&] {
          if (id.dtype == AttendDType::bf16) {
            choose_dim<Bf16>(id, maps, args);
          } else {
            choose_dim<F16>(id, maps, args);
          }
        });
    LACUNA_CHECK(fault.empty(), "{}: {}", id.name(), fault);
    return 0.0;
  }

 private:
  Family family_;
  uint64_t seed_;
};

}  // namespace

std::unique_ptr<Device> make_emulated_device(Family family, uint64_t seed) {
  return std::make_unique<EmulatedDevice>(family, seed);
}

}  // namespace lacuna::cuda::emulator
