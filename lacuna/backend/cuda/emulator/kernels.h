// SPDX-License-Identifier: Apache-2.0
// General kernels by name, as the emulator runs them: one list per module (modules.h).
#pragma once

#include <cstddef>
#include <span>

#include "lacuna/backend/cuda/modules.h"

namespace lacuna::cuda::emulator {

struct Kernel {
  const char* name;
  int threads;
  size_t args_bytes;
  void (*run)(const void* args);
};

// Turns a line of a kernel list into a Kernel.
#define LACUNA_EMULATED_KERNEL(name, Args, threads, ...) \
  Kernel{#name, threads, sizeof(Args),                   \
         [](const void* args) { __VA_ARGS__(*static_cast<const Args*>(args)); }},

#define LACUNA_DECLARE_KERNELS(module) std::span<const Kernel> module##_kernels();
LACUNA_CUDA_MODULES(LACUNA_DECLARE_KERNELS)
#undef LACUNA_DECLARE_KERNELS

}  // namespace lacuna::cuda::emulator
