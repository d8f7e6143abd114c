// SPDX-License-Identifier: Apache-2.0
// Kernel entry points of one element type. Their names are what the host asks the module for.
#pragma once

#include "lacuna/backend/cuda/attend_sm90.cuh"

#define LACUNA_ATTEND_SM90(name, T, dim, votes)                                               \
  extern "C" __global__ void __launch_bounds__(lacuna::cuda::kSm90Threads, 1)                 \
      name(const __grid_constant__ lacuna::cuda::TensorMap q,                                 \
           const __grid_constant__ lacuna::cuda::TensorMap k,                                 \
           const __grid_constant__ lacuna::cuda::TensorMap v,                                 \
           const __grid_constant__ lacuna::cuda::TensorMap out,                               \
           const __grid_constant__ lacuna::cuda::AttendArgs args) {                           \
    lacuna::cuda::attend_sm90<lacuna::cuda::T, dim, lacuna::cuda::Votes::votes>(q, k, v, out, \
                                                                                args);        \
  }
#define LACUNA_ATTEND_SM90_ALL(prefix, T)                      \
  LACUNA_ATTEND_SM90(prefix##_d64_none, T, 64, none)           \
  LACUNA_ATTEND_SM90(prefix##_d64_per_tile, T, 64, per_tile)   \
  LACUNA_ATTEND_SM90(prefix##_d64_per_slot, T, 64, per_slot)   \
  LACUNA_ATTEND_SM90(prefix##_d128_none, T, 128, none)         \
  LACUNA_ATTEND_SM90(prefix##_d128_per_tile, T, 128, per_tile) \
  LACUNA_ATTEND_SM90(prefix##_d128_per_slot, T, 128, per_slot)
