// SPDX-License-Identifier: Apache-2.0
// What host code needs of a GPU. Two implementations: the CUDA driver, and the emulator for tests.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "lacuna/backend/backend.h"
#include "lacuna/backend/cuda/launch.h"
#include "lacuna/backend/cuda/network_args.h"

namespace lacuna::cuda {

// One attention kernel. Its name is the entry point in the module of its family.
struct KernelId {
  Family family;
  AttendDType dtype;  // f16 or bf16
  int head_dim;       // 64 or 128
  Votes votes;

  std::string name() const;  // "attend_sm90_bf16_d128_per_tile"
};

// Bytes of host memory that go to `offset` bytes behind an address.
struct UploadPart {
  const void* from;
  size_t offset, bytes;
};

class Device {
 public:
  virtual ~Device() = default;
  virtual std::string description() const = 0;
  virtual Family family() const = 0;
  virtual int multiprocessors() const = 0;

  // Everything below happens in one order, that of the calls: memory released here is still good
  // for what was launched before. Host memory may be reused when upload() returns and is complete
  // when download() returns.
  //
  // 256-byte aligned. Throws Error when it cannot be had, or when more than the limit would be
  // held.
  void* allocate(size_t bytes) { return allocate(bytes, false); }
  void release(void* p);
  void upload(void* to, const void* from, size_t bytes);
  void upload(void* to, std::span<const UploadPart> parts);  // as one copy
  void download(void* to, const void* from, size_t bytes);
  bool owns(const void* p) const;  // inside an allocation of this device
  virtual void synchronize() = 0;  // until all of it has run

  // Copies that overlap with kernels, where the device can; `from` may be reused on return.
  // load() brings one into memory of its own: only what comes after it waits. stream() copies into
  // `to` once all that came before the last stream_done(slot) has run; what comes after waits for
  // it. `slot` is 0 or 1.
  void* load(const void* from, size_t bytes);
  void stream(int slot, void* to, const void* from, size_t bytes);
  virtual void stream_done(int /*slot*/) {}

  // At most so many bytes are held. Before an allocation of `bytes` gives up, `make_room`, if
  // given, is asked to release `least` of what can come again.
  using MakeRoom = std::function<void(size_t bytes, size_t least)>;
  void set_limit(size_t bytes) { limit_ = bytes; }
  size_t limit() const { return limit_; }
  void set_make_room(MakeRoom make_room) { make_room_ = std::move(make_room); }
  Backend::MemoryUse use() const;
  virtual size_t free_memory() const = 0;  // bytes that others left

  // Runs a kernel of a general module (modules.h), whose only parameter is the struct at `args`.
  // Does not wait. An empty grid runs nothing.
  virtual void launch(const char* module, const char* kernel, const Grid& grid, const void* args,
                      size_t bytes) = 0;
  template <typename Args>
  void launch(const char* module, const std::string& kernel, const Grid& grid, const Args& args) {
    launch(module, kernel.c_str(), grid, &args, sizeof(args));
  }

  // A product as a library of matrix products can finish it: no gate, activation none or gelu_tanh
  // (then no base and no relu), out f32 or of x's type, bias of out's type, k above 0. False, and
  // nothing done, where there is no library or it refuses: gemm.h has kernels for the rest.
  virtual bool gemm(const Gemm& gemm) = 0;

  // [heads, tokens, channels] of 16-bit elements, boxes of 64 tokens x 64 channels, 128-byte
  // swizzle, zeros outside. Strides in elements. sm90 only.
  virtual TensorMap tensor_map(const void* base, int64_t channels, int64_t tokens, int64_t heads,
                               int64_t token_stride, int64_t head_stride) = 0;
  // Runs an attention kernel on as many blocks as fit, at most one per job. Does not wait. Maps: q,
  // k, v, out (sm90).
  virtual void launch(const KernelId& kernel, const TensorMap (&maps)[4],
                      const AttendArgs& args) = 0;
  // Milliseconds on the device of the last of these; waits for it.
  virtual double attend_ms() = 0;

 protected:
  // How the device does it. take() gives null when there is no memory left. `beside`: for
  // copy_beside(), which does not wait for what came before.
  virtual void* take(size_t bytes, bool beside) = 0;
  virtual void give_back(void* p) = 0;
  virtual void copy_in(void* to, const void* from, size_t bytes) = 0;
  virtual void copy_out(void* to, const void* from, size_t bytes) = 0;
  virtual void copy_beside(void* to, const void* from, size_t bytes) = 0;
  virtual void wait_for_slot(int /*slot*/) {}  // of what copy_beside() does next

 private:
  void* allocate(size_t bytes, bool beside);

  std::vector<char> packed_;            // of upload() in parts
  std::map<const char*, size_t> held_;  // allocations
  size_t bytes_held_ = 0, limit_ = SIZE_MAX;
  MakeRoom make_room_;
  Backend::MemoryUse use_;
};

// What an op may take at a time for what it can also do in parts: `most`, less on a small device.
inline int64_t scratch_bytes(const Device& device, int64_t most) {
  return static_cast<int64_t>(std::min(static_cast<size_t>(most), device.limit() / 16));
}

// Device memory that goes when it goes out of scope.
class DeviceMemory {
 public:
  DeviceMemory(Device& device, size_t bytes)
      : device_(device), data_(bytes == 0 ? nullptr : device.allocate(bytes)) {}
  template <typename T>
  DeviceMemory(Device& device, const std::vector<T>& values)
      : DeviceMemory(device, values.size() * sizeof(T)) {
    if (data_ != nullptr) device.upload(data_, values.data(), values.size() * sizeof(T));
  }
  // Takes over memory of the device.
  DeviceMemory(Device& device, void* data) : device_(device), data_(data) {}
  ~DeviceMemory() {
    if (data_ != nullptr) device_.release(data_);
  }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  Device& device_;
  void* data_;
};

}  // namespace lacuna::cuda
