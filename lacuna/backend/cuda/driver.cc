// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cuda/driver.h"

#include <cuda.h>
#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <string>

#include "lacuna/core/error.h"

// Modules that the build embeds (cmake/LacunaCuda.cmake).
extern "C" {
extern const unsigned char lacuna_module_attend_sm80_bf16_sm80[];
extern const unsigned char lacuna_module_attend_sm80_f16_sm80[];
extern const unsigned char lacuna_module_attend_sm80_bf16_sm120[];
extern const unsigned char lacuna_module_attend_sm80_f16_sm120[];
extern const unsigned char lacuna_module_attend_sm90_bf16_sm90a[];
extern const unsigned char lacuna_module_attend_sm90_f16_sm90a[];
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
  decltype(&cuCtxSynchronize) synchronize;
  decltype(&cuMemAlloc) allocate;
  decltype(&cuMemFree) release;
  decltype(&cuMemcpyHtoD) to_device;
  decltype(&cuMemcpyDtoH) to_host;
  decltype(&cuModuleLoadData) load_module;
  decltype(&cuModuleGetFunction) get_function;
  decltype(&cuFuncSetAttribute) set_function_attribute;
  decltype(&cuOccupancyMaxActiveBlocksPerMultiprocessor) occupancy;
  decltype(&cuLaunchKernel) launch;
  decltype(&cuEventCreate) create_event;
  decltype(&cuEventRecord) record_event;
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
  find(a.library, "cuCtxSynchronize", true, &a.synchronize);
  find(a.library, "cuMemAlloc_v2", true, &a.allocate);
  find(a.library, "cuMemFree_v2", true, &a.release);
  find(a.library, "cuMemcpyHtoD_v2", true, &a.to_device);
  find(a.library, "cuMemcpyDtoH_v2", true, &a.to_host);
  find(a.library, "cuModuleLoadData", true, &a.load_module);
  find(a.library, "cuModuleGetFunction", true, &a.get_function);
  find(a.library, "cuFuncSetAttribute", true, &a.set_function_attribute);
  find(a.library, "cuOccupancyMaxActiveBlocksPerMultiprocessor", true, &a.occupancy);
  find(a.library, "cuLaunchKernel", true, &a.launch);
  find(a.library, "cuEventCreate", true, &a.create_event);
  find(a.library, "cuEventRecord", true, &a.record_event);
  find(a.library, "cuEventElapsedTime", true, &a.elapsed);
  find(a.library, "cuTensorMapEncodeTiled", false, &a.encode_tensor_map);
  return a;
}

class DriverDevice final : public Device {
 public:
  explicit DriverDevice(const Api& api) : api_(api) {
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
    check(api_.create_event(&start_, CU_EVENT_DEFAULT), "cuEventCreate");
    check(api_.create_event(&stop_, CU_EVENT_DEFAULT), "cuEventCreate");
  }

  std::string description() const override {
    return fmt::format("{}, sm_{}{}, driver of CUDA {}.{}", name_, major_, minor_,
                       driver_version_ / 1000, driver_version_ % 1000 / 10);
  }
  Family family() const override { return major_ == 9 ? Family::sm90 : Family::sm80; }

  void* allocate(size_t bytes) override {
    enter();
    CUdeviceptr p = 0;
    const CUresult result = api_.allocate(&p, bytes);
    LACUNA_CHECK(result == CUDA_SUCCESS,
                 "cuda: {} bytes of device memory, expected them to be "
                 "free ({})",
                 bytes, text(result));
    return reinterpret_cast<void*>(p);
  }
  void release(void* p) override {
    // Called from destructors: nothing to be done about a failure.
    api_.set_context(context_);
    api_.release(reinterpret_cast<CUdeviceptr>(p));
  }
  void upload(void* to, const void* from, size_t bytes) override {
    enter();
    check(api_.to_device(reinterpret_cast<CUdeviceptr>(to), from, bytes), "copy to device");
  }
  void download(void* to, const void* from, size_t bytes) override {
    enter();
    check(api_.to_host(to, reinterpret_cast<CUdeviceptr>(from), bytes), "copy to host");
  }

  TensorMap tensor_map(const void* base, int64_t channels, int64_t tokens, int64_t heads,
                       int64_t token_stride, int64_t head_stride) override {
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

  double launch(const KernelId& id, const TensorMap (&maps)[4], const AttendArgs& args) override {
    enter();
    const CUfunction kernel = function(id);
    const auto threads = static_cast<unsigned>(kernel_threads(id.family));
    const auto shared = static_cast<unsigned>(kernel_shared_bytes(id.family, id.head_dim));
    check(api_.set_function_attribute(kernel, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                      static_cast<int>(shared)),
          "shared memory of " + id.name());
    int blocks = 0;
    check(api_.occupancy(&blocks, kernel, static_cast<int>(threads), shared), "occupancy");
    const auto grid =
        static_cast<unsigned>(std::min(args.num_jobs, std::max(blocks, 1) * multiprocessors_));
    AttendArgs arguments = args;
    TensorMap copies[4];
    std::copy(maps, maps + 4, copies);
    void* sm90[] = {&copies[0], &copies[1], &copies[2], &copies[3], &arguments};
    void* sm80[] = {&arguments};
    check(api_.record_event(start_, nullptr), "cuEventRecord");
    check(api_.launch(kernel, grid, 1, 1, threads, 1, 1, shared, nullptr,
                      id.family == Family::sm90 ? sm90 : sm80, nullptr),
          "launch of " + id.name());
    check(api_.record_event(stop_, nullptr), "cuEventRecord");
    check(api_.synchronize(), id.name());
    float ms = 0.0f;
    check(api_.elapsed(&ms, start_, stop_), "cuEventElapsedTime");
    return ms;
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

  CUfunction function(const KernelId& id) {
    const auto [at, fresh] = functions_.try_emplace(id.name(), nullptr);
    if (!fresh) return at->second;
    const unsigned char* image = module_of(id.dtype == AttendDType::bf16);
    CUmodule& module = modules_[image];
    if (module == nullptr) {
      const CUresult result = api_.load_module(&module, image);
      LACUNA_CHECK(result == CUDA_SUCCESS,
                   "cuda: {} cannot be loaded by the driver of CUDA {}.{} ({}), expected {}.{} or "
                   "newer, which compiled it",
                   id.name(), driver_version_ / 1000, driver_version_ % 1000 / 10, text(result),
                   CUDA_VERSION / 1000, CUDA_VERSION % 1000 / 10);
    }
    check(api_.get_function(&at->second, module, id.name().c_str()), id.name());
    return at->second;
  }

  const Api& api_;
  CUdevice device_ = 0;
  CUcontext context_ = nullptr;
  CUevent start_ = nullptr, stop_ = nullptr;  // live as long as the process's context
  std::string name_;
  int driver_version_ = 0, major_ = 0, minor_ = 0, multiprocessors_ = 0;
  std::map<std::string, CUfunction> functions_;
  std::map<const unsigned char*, CUmodule> modules_;
};

}  // namespace

std::unique_ptr<Device> make_driver_device() {
  static const Api api = open_driver();
  return std::make_unique<DriverDevice>(api);
}

}  // namespace lacuna::cuda
