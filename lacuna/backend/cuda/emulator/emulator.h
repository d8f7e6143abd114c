// SPDX-License-Identifier: Apache-2.0
// Runs kernels written against ptx.cuh on the CPU. For tests: no GPU and no CUDA toolkit needed.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "lacuna/backend/cuda/launch.h"

namespace lacuna::cuda::emulator {

// Runs `blocks` thread blocks one after another. `seed` orders threads and asynchronous copies.
// Returns what the kernel did wrong (first finding), or nothing.
std::string run(int blocks, int threads, uint64_t seed, const std::function<void()>& kernel);
// The same on a grid whose blocks have their own share of shared memory. With `memory`, global
// memory that the kernel reads or writes must lie inside one of its allocations.
class GlobalMemory;
std::string run(const Grid& grid, const GlobalMemory* memory, uint64_t seed,
                const std::function<void()>& kernel);

// A [heads, tokens, channels] tensor of 16-bit elements for boxes of 64 channels x 64 tokens with
// the 128-byte swizzle. Strides in elements. Returns why the driver would refuse it, or nothing.
std::string make_tensor_map(const void* base, int64_t channels, int64_t tokens, int64_t heads,
                            int64_t token_stride, int64_t head_stride, TensorMap* map);

// Boxes loaded by TMA in the last run.
int64_t loads_of_last_run();

}  // namespace lacuna::cuda::emulator
