// SPDX-License-Identifier: Apache-2.0
// The kernels of module "attend_any" (modules.h).
#pragma once

#include "lacuna/backend/cuda/attend_any.cuh"

#define LACUNA_ATTEND_ANY_KERNELS_OF(X, dtype, T)                              \
  X(attend_any_##dtype##_d64, AttendAnyArgs, kAnyThreads, attend_any<T, 64>)   \
  X(attend_any_##dtype##_d128, AttendAnyArgs, kAnyThreads, attend_any<T, 128>) \
  X(attend_any_##dtype##_d256, AttendAnyArgs, kAnyThreads, attend_any<T, 256>) \
  X(attend_any_##dtype##_d512, AttendAnyArgs, kAnyThreads, attend_any<T, 512>)
#define LACUNA_ATTEND_ANY_KERNELS(X)          \
  LACUNA_ATTEND_ANY_KERNELS_OF(X, f32, F32)   \
  LACUNA_ATTEND_ANY_KERNELS_OF(X, bf16, Bf16) \
  LACUNA_ATTEND_ANY_KERNELS_OF(X, f16, F16)
