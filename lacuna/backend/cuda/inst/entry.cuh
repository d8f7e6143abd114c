// SPDX-License-Identifier: Apache-2.0
// Turns a line of a kernel list (modules.h) into an entry point. Used inside namespace
// lacuna::cuda::entry, where the list's names are known and cannot clash with entry points.
#pragma once

#include "lacuna/backend/cuda/ptx.cuh"

#define LACUNA_ENTRY(name, Args, threads, ...)                                                    \
  extern "C" __global__ void __launch_bounds__(threads) name(const __grid_constant__ Args args) { \
    lacuna::cuda::__VA_ARGS__(args);                                                              \
  }
