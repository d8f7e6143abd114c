// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cuda/driver.h"

#include <cuda.h>
#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <string>

#include "lacuna/backend/cuda/cublaslt.h"
#include "lacuna/backend/cuda/modules.h"
#include "lacuna/core/error.h"
#include "lacuna/core/threads.h"

// Modules that the build embeds (cmake/LacunaCuda.cmake).
extern "C" {
extern const unsigned char lacuna_module_attend_sm80_bf16_sm80[];
extern const unsigned char lacuna_module_attend_sm80_f16_sm80[];
extern const unsigned char lacuna_module_attend_sm80_bf16_sm120[];
extern const unsigned char lacuna_module_attend_sm80_f16_sm120[];
extern const unsigned char lacuna_module_attend_sm90_bf16_sm90a[];
extern const unsigned char lacuna_module_attend_sm90_f16_sm90a[];
#define LACUNA_DECLARE_MODULE(name)                          \
  extern const unsigned char lacuna_module_##name##_sm80[];  \
  extern const unsigned char lacuna_module_##name##_sm90a[]; \
  extern const unsigned char lacuna_module_##name##_sm120[];
LACUNA_CUDA_MODULES(LACUNA_DECLARE_MODULE)
#undef LACUNA_DECLARE_MODULE
}

namespace lacuna::cuda {
namespace {

// The driver's functions, by the names they have in libcuda.so.1. They stay loaded.
struct Api {
  void* library = nullptr;
  decltype(&cuInit) init;
  decltype(&cuGetErrorString) error_string;
  decltype(&cuDriverGetVersion) driver_version;
  decltype(&cuDeviceGetCount) device_count;
  decltype(&cuDeviceGet) device_get;
  decltype(&cuDeviceGetName) device_name;
  decltype(&cuDeviceGetAttribute) device_attribute;
  decltype(&cuDevicePrimaryCtxRetain) retain_context;
  decltype(&cuCtxSetCurrent) set_context;
  decltype(&cuStreamCreate) create_stream;
  decltype(&cuStreamDestroy) destroy_stream;
  decltype(&cuStreamSynchronize) synchronize;
  decltype(&cuMemAlloc) allocate;
  decltype(&cuMemFree) release;
  decltype(&cuMemGetInfo) memory_info;
  decltype(&cuMemAllocHost) allocate_host;
  decltype(&cuMemFreeHost) release_host;
  decltype(&cuMemcpyHtoDAsync) to_device;
  decltype(&cuMemcpyDtoHAsync) to_host;
  // Memory in the order of a stream; where the driver or the device has none, null.
  decltype(&cuMemAllocAsync) allocate_async;
  decltype(&cuMemFreeAsync) release_async;
  decltype(&cuDeviceGetDefaultMemPool) memory_pool;
  decltype(&cuMemPoolSetAttribute) set_pool_attribute;
  decltype(&cuMemPoolTrimTo) trim_pool;
  decltype(&cuModuleLoadData) load_module;
  decltype(&cuModuleUnload) unload_module;
  decltype(&cuModuleGetFunction) get_function;
  decltype(&cuFuncSetAttribute) set_function_attribute;
  decltype(&cuOccupancyMaxActiveBlocksPerMultiprocessor) occupancy;
  decltype(&cuLaunchKernel) launch;
  decltype(&cuEventCreate) create_event;
  decltype(&cuEventDestroy) destroy_event;
  decltype(&cuEventRecord) record_event;
  decltype(&cuEventSynchronize) wait_event;
  decltype(&cuStreamWaitEvent) stream_wait;
  // The name that every driver has; newer headers map it to a later version.
  CUresult (*elapsed)(float*, CUevent, CUevent);
  decltype(&cuTensorMapEncodeTiled) encode_tensor_map;  // null before CUDA 12.0
};

template <typename F>
void find(void* library, const char* name, bool required, F* function) {
  *function = reinterpret_cast<F>(dlsym(library, name));
  LACUNA_CHECK(*function != nullptr || !required,
               "cuda: libcuda.so.1 has no {}, expected a driver "
               "of CUDA 11.4 or newer",
               name);
}

Api open_driver() {
  Api a{};
  a.library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  LACUNA_CHECK(a.library != nullptr,
               "cuda: no NVIDIA driver on this machine (libcuda.so.1 cannot be opened), expected "
               "one; --backend cpu runs everywhere");
  find(a.library, "cuInit", true, &a.init);
  find(a.library, "cuGetErrorString", true, &a.error_string);
  find(a.library, "cuDriverGetVersion", true, &a.driver_version);
  find(a.library, "cuDeviceGetCount", true, &a.device_count);
  find(a.library, "cuDeviceGet", true, &a.device_get);
  find(a.library, "cuDeviceGetName", true, &a.device_name);
  find(a.library, "cuDeviceGetAttribute", true, &a.device_attribute);
  find(a.library, "cuDevicePrimaryCtxRetain", true, &a.retain_context);
  find(a.library, "cuCtxSetCurrent", true, &a.set_context);
  find(a.library, "cuStreamCreate", true, &a.create_stream);
  find(a.library, "cuStreamDestroy_v2", true, &a.destroy_stream);
  find(a.library, "cuStreamSynchronize", true, &a.synchronize);
  find(a.library, "cuMemAlloc_v2", true, &a.allocate);
  find(a.library, "cuMemFree_v2", true, &a.release);
  find(a.library, "cuMemAllocHost_v2", true, &a.allocate_host);
  find(a.library, "cuMemFreeHost", true, &a.release_host);
  find(a.library, "cuMemcpyHtoDAsync_v2", true, &a.to_device);
  find(a.library, "cuMemcpyDtoHAsync_v2", true, &a.to_host);
  find(a.library, "cuMemAllocAsync", false, &a.allocate_async);
  find(a.library, "cuMemFreeAsync", false, &a.release_async);
  find(a.library, "cuDeviceGetDefaultMemPool", false, &a.memory_pool);
  find(a.library, "cuMemPoolSetAttribute", false, &a.set_pool_attribute);
  find(a.library, "cuMemPoolTrimTo", false, &a.trim_pool);
  find(a.library, "cuModuleLoadData", true, &a.load_module);
  find(a.library, "cuModuleUnload", true, &a.unload_module);
  find(a.library, "cuModuleGetFunction", true, &a.get_function);
  find(a.library, "cuFuncSetAttribute", true, &a.set_function_attribute);
  find(a.library, "cuOccupancyMaxActiveBlocksPerMultiprocessor", true, &a.occupancy);
  find(a.library, "cuLaunchKernel", true, &a.launch);
  find(a.library, "cuEventCreate", true, &a.create_event);
  find(a.library, "cuEventDestroy_v2", true, &a.destroy_event);
  find(a.library, "cuEventRecord", true, &a.record_event);
  find(a.library, "cuEventSynchronize", true, &a.wait_event);
  find(a.library, "cuStreamWaitEvent", true, &a.stream_wait);
  find(a.library, "cuMemGetInfo_v2", true, &a.memory_info);
  find(a.library, "cuEventElapsedTime", true, &a.elapsed);
  find(a.library, "cuTensorMapEncodeTiled", false, &a.encode_tensor_map);
  return a;
}

// The mask of a long video is a few MB for each call of attention.
constexpr size_t kStagingBytes = size_t{64} << 20;
constexpr size_t kStagedBytes = size_t{16} << 20;  // larger uploads wait instead
constexpr size_t kPieceBytes = size_t{32} << 20;   // of a pinned buffer that weights stream through
constexpr int64_t kCopyRange = int64_t{1} << 20;

class DriverDevice final : public Device {
 public:
  explicit DriverDevice(const Api& api) : api_(api) {}
  ~DriverDevice() override { close(); }

  // Apart from the constructor, so that the destructor releases what a failure leaves.
  void open() {
    check(api_.init(0), "cuInit");
    int count = 0;
    check(api_.device_count(&count), "cuDeviceGetCount");
    LACUNA_CHECK(count > 0, "cuda: 0 devices, expected 1 or more");
    check(api_.device_get(&device_, 0), "cuDeviceGet");
    char name[256] = {};
    check(api_.device_name(name, sizeof(name) - 1, device_), "cuDeviceGetName");
    check(api_.driver_version(&driver_version_), "cuDriverGetVersion");
    name_ = name;
    major_ = attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
    minor_ = attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
    multiprocessors_ = attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
    // Binaries of sm_80 run on all of 8.x, of sm_90a on 9.0 only, of sm_120 on 12.x.
    LACUNA_CHECK(major_ == 8 || (major_ == 9 && minor_ == 0) || major_ == 12,
                 "cuda: {} has compute capability {}.{}, expected 8.x, 9.0 or 12.x", name_, major_,
                 minor_);
    LACUNA_CHECK(family() == Family::sm80 || api_.encode_tensor_map != nullptr,
                 "cuda: driver of CUDA {}.{}, expected 12.0 or newer for {}",
                 driver_version_ / 1000, driver_version_ % 1000 / 10, name_);
    CUcontext context = nullptr;
    check(api_.retain_context(&context, device_), "cuDevicePrimaryCtxRetain");
    context_ = context;
    enter();
    check(api_.create_stream(&stream_, CU_STREAM_NON_BLOCKING), "cuStreamCreate");
    check(api_.create_event(&start_, CU_EVENT_DEFAULT), "cuEventCreate");
    check(api_.create_event(&stop_, CU_EVENT_DEFAULT), "cuEventCreate");
    void* staging = nullptr;
    check(api_.allocate_host(&staging, kStagingBytes), "cuMemAllocHost");
    staging_ = static_cast<unsigned char*>(staging);
    choose_pool();
    std::string why;
    workspace_ = allocate(kMatrixWorkspaceBytes);
    library_ = open_matrix_library(workspace_, &why);
    products_ = library_ != nullptr ? library_->name() : "own matrix products (" + why + ")";
  }

  std::string description() const override {
    return fmt::format("{}, sm_{}{}, driver of CUDA {}.{}, {}", name_, major_, minor_,
                       driver_version_ / 1000, driver_version_ % 1000 / 10, products_);
  }
  Family family() const override { return major_ == 9 ? Family::sm90 : Family::sm80; }
  int multiprocessors() const override { return multiprocessors_; }

  void synchronize() override {
    enter();
    check(api_.synchronize(stream_), "cuStreamSynchronize");
    staged_ = 0;
  }

  void launch(const char* module, const char* name, const Grid& grid, const void* args,
              size_t) override {
    if (grid.blocks <= 0 || grid.blocks_y <= 0) return;
    enter();
    const CUfunction kernel = function(module_image(module), name);
    if (grid.shared_bytes > (48 << 10)) allow_shared(kernel, grid.shared_bytes, name);
    void* parameters[] = {const_cast<void*>(args)};
    check(api_.launch(kernel, static_cast<unsigned>(grid.blocks),
                      static_cast<unsigned>(grid.blocks_y), 1, static_cast<unsigned>(grid.threads),
                      1, 1, static_cast<unsigned>(grid.shared_bytes), stream_, parameters, nullptr),
          fmt::format("launch of {}", name));
  }

  bool gemm(const Gemm& g) override {
    if (library_ == nullptr) return false;
    enter();
    return library_->gemm(g, stream_);
  }

  size_t free_memory() const override {
    enter();
    size_t free = 0, total = 0;
    check(api_.memory_info(&free, &total), "cuMemGetInfo");
    return free;
  }

  void stream_done(int slot) override {
    // Called from destructors, like release().
    api_.set_context(context_);
    if (copies_ == nullptr) make_copies();
    api_.record_event(slot_done_[slot], stream_);
  }

  TensorMap tensor_map(const void* base, int64_t channels, int64_t tokens, int64_t heads,
                       int64_t token_stride, int64_t head_stride) override {
    enter();
    CUtensorMap map;
    const cuuint64_t size[] = {static_cast<cuuint64_t>(channels), static_cast<cuuint64_t>(tokens),
                               static_cast<cuuint64_t>(heads)};
    const cuuint64_t stride[] = {static_cast<cuuint64_t>(token_stride) * 2,
                                 static_cast<cuuint64_t>(head_stride) * 2};
    const cuuint32_t box[] = {64, kSlotKeys, 1}, step[] = {1, 1, 1};
    // The copy only moves bits, so one 16-bit type serves both float types; fill is zero bits.
    check(api_.encode_tensor_map(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 3, const_cast<void*>(base),
                                 size, stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                 CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                 CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
          "cuTensorMapEncodeTiled");
    TensorMap out;
    static_assert(sizeof(out) == sizeof(map));
    std::memcpy(&out, &map, sizeof(map));
    return out;
  }

  void launch(const KernelId& id, const TensorMap (&maps)[4], const AttendArgs& args) override {
    enter();
    const CUfunction kernel = function(module_of(id.dtype == AttendDType::bf16), id.name());
    const auto threads = static_cast<unsigned>(kernel_threads(id.family));
    const auto shared = static_cast<unsigned>(kernel_shared_bytes(id.family, id.head_dim));
    allow_shared(kernel, static_cast<int>(shared), id.name());
    int blocks = 0;
    check(api_.occupancy(&blocks, kernel, static_cast<int>(threads), shared), "occupancy");
    const auto grid =
        static_cast<unsigned>(std::min(args.num_jobs, std::max(blocks, 1) * multiprocessors_));
    AttendArgs arguments = args;
    TensorMap copies[4];
    std::copy(maps, maps + 4, copies);
    void* sm90[] = {&copies[0], &copies[1], &copies[2], &copies[3], &arguments};
    void* sm80[] = {&arguments};
    check(api_.record_event(start_, stream_), "cuEventRecord");
    check(api_.launch(kernel, grid, 1, 1, threads, 1, 1, shared, stream_,
                      id.family == Family::sm90 ? sm90 : sm80, nullptr),
          "launch of " + id.name());
    check(api_.record_event(stop_, stream_), "cuEventRecord");
  }
  double attend_ms() override {
    enter();
    check(api_.wait_event(stop_), "cuEventSynchronize");
    float ms = 0.0f;
    check(api_.elapsed(&ms, start_, stop_), "cuEventElapsedTime");
    return ms;
  }

 protected:
  // Memory for copies beside kernels comes in the order of those copies: the pool gives out nothing
  // there that kernels under way still use, and the copy need not wait for them.
  void* take(size_t bytes, bool beside) override {
    enter();
    if (beside && copies_ == nullptr) make_copies();
    const CUstream order = beside ? copies_ : stream_;
    CUdeviceptr p = 0;
    const auto attempt = [&] {
      return pooled_ ? api_.allocate_async(&p, bytes, order) : api_.allocate(&p, bytes);
    };
    CUresult result = attempt();
    if (result == CUDA_ERROR_OUT_OF_MEMORY) {
      synchronize();  // what was released comes back now, in whatever pieces it was
      if (pooled_) check(api_.trim_pool(pool_, 0), "cuMemPoolTrimTo");
      result = attempt();
    }
    if (result == CUDA_ERROR_OUT_OF_MEMORY) return nullptr;
    check(result, "allocation");
    return reinterpret_cast<void*>(p);
  }
  void give_back(void* p) override {
    // Called from destructors: nothing to be done about a failure.
    const auto address = reinterpret_cast<CUdeviceptr>(p);
    api_.set_context(context_);
    if (pooled_) {
      api_.release_async(address, stream_);
    } else {
      api_.synchronize(stream_);
      api_.release(address);
    }
  }
  void copy_in(void* to, const void* from, size_t bytes) override {
    enter();
    const auto address = reinterpret_cast<CUdeviceptr>(to);
    if (bytes > kStagedBytes) {
      check(api_.to_device(address, from, bytes, stream_), "copy to device");
      synchronize();  // the caller may reuse its memory
      return;
    }
    // Small ones go through pinned memory that nobody else writes: no wait until it is full.
    if (staged_ + bytes > kStagingBytes) synchronize();
    std::memcpy(staging_ + staged_, from, bytes);
    check(api_.to_device(address, staging_ + staged_, bytes, stream_), "copy to device");
    staged_ += (bytes + 63) / 64 * 64;
  }
  void copy_out(void* to, const void* from, size_t bytes) override {
    enter();
    check(api_.to_host(to, reinterpret_cast<CUdeviceptr>(from), bytes, stream_), "copy to host");
    synchronize();
  }
  // Pageable memory -> two pinned buffers in turn -> device, on a stream of its own.
  void copy_beside(void* to, const void* from, size_t bytes) override {
    enter();
    if (copies_ == nullptr) make_copies();
    for (size_t at = 0; at < bytes; at += kPieceBytes) {
      Piece& piece = pieces_[next_piece_];
      next_piece_ ^= 1;
      const size_t size = std::min(kPieceBytes, bytes - at);
      check(api_.wait_event(piece.copied), "cuEventSynchronize");
      // By all threads: one alone is slower than the bus, above all where it faults pages in.
      parallel_ranges(static_cast<int64_t>(size), kCopyRange, [&](int64_t begin, int64_t end) {
        std::memcpy(static_cast<char*>(piece.memory) + begin,
                    static_cast<const char*>(from) + at + begin, static_cast<size_t>(end - begin));
      });
      check(api_.to_device(reinterpret_cast<CUdeviceptr>(to) + at, piece.memory, size, copies_),
            "copy to device");
      check(api_.record_event(piece.copied, copies_), "cuEventRecord");
    }
    check(api_.record_event(arrived_, copies_), "cuEventRecord");
    check(api_.stream_wait(stream_, arrived_, 0), "cuStreamWaitEvent");
  }
  void wait_for_slot(int slot) override {
    enter();
    if (copies_ == nullptr) make_copies();
    check(api_.stream_wait(copies_, slot_done_[slot], 0), "cuStreamWaitEvent");
  }

 private:
  std::string text(CUresult result) const {
    const char* words = nullptr;
    api_.error_string(result, &words);
    return words != nullptr ? words : fmt::format("error {}", static_cast<int>(result));
  }
  void check(CUresult result, const std::string& what) const {
    LACUNA_CHECK(result == CUDA_SUCCESS, "cuda: {}: {}, expected success", what, text(result));
  }
  int attribute(CUdevice_attribute which) const {
    int value = 0;
    check(api_.device_attribute(&value, which, device_), "cuDeviceGetAttribute");
    return value;
  }
  // The context is a property of the calling thread.
  void enter() const { check(api_.set_context(context_), "cuCtxSetCurrent"); }

  const unsigned char* module_of(bool bf16) const {
    if (major_ == 9)
      return bf16 ? lacuna_module_attend_sm90_bf16_sm90a : lacuna_module_attend_sm90_f16_sm90a;
    if (major_ == 12)
      return bf16 ? lacuna_module_attend_sm80_bf16_sm120 : lacuna_module_attend_sm80_f16_sm120;
    return bf16 ? lacuna_module_attend_sm80_bf16_sm80 : lacuna_module_attend_sm80_f16_sm80;
  }

  const unsigned char* module_image(const char* name) const {
    const struct {
      const char* name;
      const unsigned char *sm80, *sm90a, *sm120;
    } modules[] = {
#define LACUNA_MODULE(m) \
  {#m, lacuna_module_##m##_sm80, lacuna_module_##m##_sm90a, lacuna_module_##m##_sm120},
        LACUNA_CUDA_MODULES(LACUNA_MODULE)
#undef LACUNA_MODULE
    };
    for (const auto& m : modules)
      if (std::strcmp(m.name, name) == 0)
        return major_ == 9 ? m.sm90a : major_ == 12 ? m.sm120 : m.sm80;
    fail("cuda: no module {}, expected one of modules.h", name);
  }

  CUfunction function(const unsigned char* image, const std::string& name) {
    CUfunction& found = functions_[name];  // null until it could be had
    if (found != nullptr) return found;
    CUmodule& module = modules_[image];
    if (module == nullptr) {
      const CUresult result = api_.load_module(&module, image);
      LACUNA_CHECK(result == CUDA_SUCCESS,
                   "cuda: {} cannot be loaded by the driver of CUDA {}.{} ({}), expected {}.{} or "
                   "newer, which compiled it",
                   name, driver_version_ / 1000, driver_version_ % 1000 / 10, text(result),
                   CUDA_VERSION / 1000, CUDA_VERSION % 1000 / 10);
    }
    check(api_.get_function(&found, module, name.c_str()), name);
    return found;
  }
  void allow_shared(CUfunction kernel, int bytes, const std::string& name) const {
    check(
        api_.set_function_attribute(kernel, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes),
        "shared memory of " + name);
  }
  // The primary context stays: others in this process may work in it, cuBLASLt among them, and the
  // last to let it go ends it.
  void close() {
    // One that is gone, as when the process ends, or that a fault broke, has taken all of it along.
    if (context_ == nullptr || api_.set_context(context_) != CUDA_SUCCESS ||
        api_.synchronize(stream_) != CUDA_SUCCESS ||
        (copies_ != nullptr && api_.synchronize(copies_) != CUDA_SUCCESS)) {
      static_cast<void>(library_.release());  // its end would call into what is gone
      return;
    }
    library_.reset();  // it works in workspace_
    release(workspace_);
    if (pooled_) {
      api_.synchronize(stream_);  // what was released in its order is the pool's from here on
      api_.trim_pool(pool_, 0);
    }
    for (const auto& [image, module] : modules_)
      if (module != nullptr) api_.unload_module(module);
    for (void* pinned : {static_cast<void*>(staging_), pieces_[0].memory, pieces_[1].memory})
      if (pinned != nullptr) api_.release_host(pinned);
    for (const CUevent event : {start_, stop_, slot_done_[0], slot_done_[1], arrived_,
                                pieces_[0].copied, pieces_[1].copied})
      if (event != nullptr) api_.destroy_event(event);
    for (const CUstream stream : {copies_, stream_})
      if (stream != nullptr) api_.destroy_stream(stream);
  }
  void make_copies() {
    for (Piece& piece : pieces_) {
      check(api_.allocate_host(&piece.memory, kPieceBytes), "cuMemAllocHost");
      check(api_.create_event(&piece.copied, CU_EVENT_DISABLE_TIMING), "cuEventCreate");
    }
    for (CUevent* event : {&slot_done_[0], &slot_done_[1], &arrived_})
      check(api_.create_event(event, CU_EVENT_DISABLE_TIMING), "cuEventCreate");
    check(api_.create_stream(&copies_, CU_STREAM_NON_BLOCKING), "cuStreamCreate");
  }
  // Ops allocate and release at every call: the pool must keep what was released.
  void choose_pool() {
    if (api_.allocate_async == nullptr || api_.release_async == nullptr ||
        api_.memory_pool == nullptr || api_.set_pool_attribute == nullptr ||
        api_.trim_pool == nullptr || attribute(CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED) == 0)
      return;
    check(api_.memory_pool(&pool_, device_), "cuDeviceGetDefaultMemPool");
    cuuint64_t keep = UINT64_MAX;
    check(api_.set_pool_attribute(pool_, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &keep),
          "cuMemPoolSetAttribute");
    // Nor may it make the stream of copies wait for kernels, so as to give out what they hold.
    int none = 0;
    check(api_.set_pool_attribute(pool_, CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES, &none),
          "cuMemPoolSetAttribute");
    pooled_ = true;
  }

  const Api& api_;
  CUdevice device_ = 0;
  CUcontext context_ = nullptr;
  CUstream stream_ = nullptr;
  CUevent start_ = nullptr, stop_ = nullptr;
  // Streaming of weights.
  CUstream copies_ = nullptr;
  CUevent slot_done_[2] = {}, arrived_ = nullptr;
  struct Piece {
    void* memory = nullptr;  // pinned
    CUevent copied = nullptr;
  };
  Piece pieces_[2];
  int next_piece_ = 0;
  unsigned char* staging_ = nullptr;  // pinned
  size_t staged_ = 0;                 // bytes of it that copies under way may still read
  bool pooled_ = false;               // memory in the order of the stream
  CUmemoryPool pool_ = nullptr;
  void* workspace_ = nullptr;  // of products
  std::unique_ptr<MatrixLibrary> library_;
  std::string products_;  // who makes them
  std::string name_;
  int driver_version_ = 0, major_ = 0, minor_ = 0, multiprocessors_ = 0;
  std::map<std::string, CUfunction> functions_;
  std::map<const unsigned char*, CUmodule> modules_;
};

}  // namespace

std::unique_ptr<Device> make_driver_device() {
  static const Api api = open_driver();
  auto device = std::make_unique<DriverDevice>(api);
  device->open();
  return device;
}

}  // namespace lacuna::cuda
