// SPDX-License-Identifier: Apache-2.0
// The kernels of module "select" (modules.h).
#pragma once

#include "lacuna/backend/cuda/antidiagonal.cuh"
#include "lacuna/backend/cuda/block_mass.cuh"
#include "lacuna/backend/cuda/choose.cuh"
#include "lacuna/backend/cuda/nearest.cuh"
#include "lacuna/backend/cuda/pool.cuh"
#include "lacuna/backend/cuda/tokens.cuh"

#define LACUNA_SELECT_KERNELS_OF(X, dtype, T)                                 \
  X(block_mean_##dtype, BlockMeanArgs, kBlockMeanThreads, block_mean<T>)      \
  X(antidiagonal_##dtype, AntidiagonalArgs, kProductThreads, antidiagonal<T>) \
  X(block_mass_##dtype, BlockMassArgs, kProductThreads, block_mass<T>)        \
  X(half_norms_##dtype, NearestArgs, kNormThreads, half_norms<T>)             \
  X(nearest_##dtype, NearestArgs, kProductThreads, nearest<T>)                \
  X(merge_##dtype, MergeArgs, kMergeThreads, merge<T>)
#define LACUNA_SELECT_KERNELS(X)                                \
  LACUNA_SELECT_KERNELS_OF(X, f32, F32)                         \
  LACUNA_SELECT_KERNELS_OF(X, bf16, Bf16)                       \
  X(choose_scores, SelectArgs, kSelectThreads, choose)          \
  X(permute_16, PermuteArgs, kPermuteThreads, permute<Unit16>)  \
  X(permute_8, PermuteArgs, kPermuteThreads, permute<uint64_t>) \
  X(permute_4, PermuteArgs, kPermuteThreads, permute<uint32_t>) \
  X(permute_2, PermuteArgs, kPermuteThreads, permute<uint16_t>) \
  X(permute_1, PermuteArgs, kPermuteThreads, permute<uint8_t>)
