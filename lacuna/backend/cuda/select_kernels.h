// SPDX-License-Identifier: Apache-2.0
// The kernels of module "select" (modules.h).
#pragma once

#include "lacuna/backend/cuda/pool.cuh"

#define LACUNA_SELECT_KERNELS(X)                                       \
  X(block_mean_f32, BlockMeanArgs, kBlockMeanThreads, block_mean<F32>) \
  X(block_mean_bf16, BlockMeanArgs, kBlockMeanThreads, block_mean<Bf16>)
