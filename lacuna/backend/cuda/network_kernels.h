// SPDX-License-Identifier: Apache-2.0
// The kernels of module "network" (modules.h).
#pragma once

#include "lacuna/backend/cuda/gemm.cuh"
#include "lacuna/backend/cuda/group_norm.cuh"
#include "lacuna/backend/cuda/norm.cuh"
#include "lacuna/backend/cuda/walk.cuh"

#define LACUNA_NETWORK_KERNELS(X)                                         \
  X(gemm_bf16, Gemm, kGemmThreads, gemm_bf16)                             \
  X(gemm_f32, Gemm, kGemmThreads, gemm_f32)                               \
  X(gemm_finish, FinishArgs, kWalkThreads, gemm_finish)                   \
  X(layer_norm, LayerNormArgs, kRowThreads, layer_norm)                   \
  X(rms_norm, RmsNormArgs, kRowThreads, rms_norm<false>)                  \
  X(rms_norm_summed, RmsNormArgs, kRowThreads, rms_norm<true>)            \
  X(rms_norm_heads, RmsNormArgs, kChannelThreads, rms_norm_heads)         \
  X(channel_norm, ChannelNormArgs, kChannelThreads, channel_norm)         \
  X(group_sums, GroupNormArgs, kGroupThreads, group_sums)                 \
  X(group_coefficients, GroupNormArgs, kGroupThreads, group_coefficients) \
  X(group_apply, GroupNormArgs, kGroupThreads, group_apply)               \
  X(gelu_mul, PairArgs, kWalkThreads, pairwise<Pair::gelu_mul>)           \
  X(silu_mul, PairArgs, kWalkThreads, pairwise<Pair::silu_mul>)           \
  X(add, PairArgs, kWalkThreads, pairwise<Pair::add>)                     \
  X(copy_1, CopyArgs, kWalkThreads, move<uint8_t>)                        \
  X(copy_2, CopyArgs, kWalkThreads, move<uint16_t>)                       \
  X(copy_4, CopyArgs, kWalkThreads, move<uint32_t>)                       \
  X(copy_8, CopyArgs, kWalkThreads, move<uint64_t>)                       \
  X(copy_16, CopyArgs, kWalkThreads, move<Bytes16>)                       \
  X(copy_to_bf16, CopyArgs, kWalkThreads, convert<true>)                  \
  X(copy_to_f32, CopyArgs, kWalkThreads, convert<false>)                  \
  X(patches_2, PatchArgs, kWalkThreads, patches<uint16_t>)                \
  X(patches_4, PatchArgs, kWalkThreads, patches<uint32_t>)                \
  X(patches_16, PatchArgs, kWalkThreads, patches<Bytes16>)
