// SPDX-License-Identifier: Apache-2.0
// The kernels of module "decode" (modules.h), named after what they read (dtype_name).
#pragma once

#include "lacuna/backend/cuda/decode.cuh"

#define LACUNA_DECODE_KERNELS(X)                                 \
  X(decode_f16, DecodeArgs, kDecodeThreads, decode<Half>)        \
  X(decode_f8_e4m3, DecodeArgs, kDecodeThreads, decode<F8E4M3>)  \
  X(decode_f8_e5m2, DecodeArgs, kDecodeThreads, decode<F8E5M2>)  \
  X(decode_q8_0, DecodeArgs, kDecodeThreads, decode<Q8>)         \
  X(decode_q4_0, DecodeArgs, kDecodeThreads, decode<Q4<false>>)  \
  X(decode_q4_1, DecodeArgs, kDecodeThreads, decode<Q4<true>>)   \
  X(decode_q5_0, DecodeArgs, kDecodeThreads, decode<Q5<false>>)  \
  X(decode_q5_1, DecodeArgs, kDecodeThreads, decode<Q5<true>>)   \
  X(decode_q2_k, DecodeArgs, kDecodeThreads, decode<Q2K>)        \
  X(decode_q3_k, DecodeArgs, kDecodeThreads, decode<Q3K>)        \
  X(decode_q4_k, DecodeArgs, kDecodeThreads, decode<K45<false>>) \
  X(decode_q5_k, DecodeArgs, kDecodeThreads, decode<K45<true>>)  \
  X(decode_q6_k, DecodeArgs, kDecodeThreads, decode<Q6K>)
