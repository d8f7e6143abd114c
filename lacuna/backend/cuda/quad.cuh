// SPDX-License-Identifier: Apache-2.0
// Four neighbouring elements at a time, f32 or bf16 decided at run time.
#pragma once

#include "lacuna/backend/cuda/element.cuh"

namespace lacuna::cuda {

struct alignas(8) Quad16 {
  uint32_t v[2];
};

// Elements [i, i + count) of `base`, `stride` apart; zeros behind them. vector: four of them lie
// together, aligned as a whole.
LACUNA_DEVICE void load_quad(const void* base, int64_t i, int64_t stride, int count, bool bf16,
                             bool vector, float (&v)[4]) {
  if (vector && count == 4) {
    if (bf16) {
      const Quad16 q =
          read_global(reinterpret_cast<const Quad16*>(static_cast<const uint16_t*>(base) + i));
      LACUNA_UNROLL
      for (int e = 0; e < 4; ++e)
        v[e] = to_float(static_cast<uint16_t>(q.v[e >> 1] >> (16 * (e & 1))), Bf16());
    } else {
      const Float4 q =
          read_global(reinterpret_cast<const Float4*>(static_cast<const float*>(base) + i));
      LACUNA_UNROLL
      for (int e = 0; e < 4; ++e) v[e] = q.v[e];
    }
    return;
  }
  LACUNA_UNROLL
  for (int e = 0; e < 4; ++e) {
    v[e] = 0.0f;
    if (e < count)
      v[e] =
          bf16 ? load_element<Bf16>(base, i + e * stride) : load_element<F32>(base, i + e * stride);
  }
}

LACUNA_DEVICE void store_quad(void* base, int64_t i, int64_t stride, int count, bool bf16,
                              bool vector, const float (&v)[4]) {
  if (vector && count == 4) {
    if (bf16) {
      write_global(reinterpret_cast<Quad16*>(static_cast<uint16_t*>(base) + i),
                   Quad16{{pack_pair(v[0], v[1], Bf16()), pack_pair(v[2], v[3], Bf16())}});
    } else {
      write_global(reinterpret_cast<Float4*>(static_cast<float*>(base) + i),
                   Float4{{v[0], v[1], v[2], v[3]}});
    }
    return;
  }
  LACUNA_UNROLL
  for (int e = 0; e < 4; ++e)
    if (e < count) {
      if (bf16) {
        store_element<Bf16>(base, i + e * stride, v[e]);
      } else {
        store_element<F32>(base, i + e * stride, v[e]);
      }
    }
}

// The quad at channel c of a row of `d` channels.
LACUNA_DEVICE int quad_count(int c, int d) {
  return d - c < 4 ? d - c : 4;
}

LACUNA_DEVICE float silu(float x) {
  return x / (1.0f + exp2_approx(-x * kLog2E));
}
// 0.5 x (1 + tanh(u)) = x / (1 + exp(-2 u)), u = sqrt(2/pi) (x + 0.044715 x^3)
LACUNA_DEVICE float gelu_tanh(float x) {
  const float u = 0.79788456080286536f * (x + 0.044715f * x * x * x);
  return x / (1.0f + exp2_approx(-2.0f * kLog2E * u));
}

}  // namespace lacuna::cuda
