// SPDX-License-Identifier: Apache-2.0
// A software model of the few AMX tile instructions that the attention kernel uses, so that its
// source runs, slowly, where there is no tile unit. All tiles have 16 rows of 64 bytes. As in
// hardware, inputs that are denormal count as zero and every tile must be configured before use:
// reading one that was not gives NaN.
#pragma once

#include <stdint.h>

namespace lacuna::cpu {
namespace {

struct EmulatedTile {
  alignas(64) uint32_t row[16][16];
};

static thread_local EmulatedTile emulated_tiles[8];

inline void emulated_poison() {
  for (EmulatedTile& tile : emulated_tiles)
    for (auto& row : tile.row)
      for (uint32_t& x : row) x = 0x7fc07fc0u;  // NaN as f32 and as two bf16
}

inline void emulated_load(int tile, const void* base, int64_t stride) {
  for (int i = 0; i < 16; ++i)
    __builtin_memcpy(emulated_tiles[tile].row[i], static_cast<const char*>(base) + i * stride, 64);
}

inline void emulated_store(int tile, void* base, int64_t stride) {
  for (int i = 0; i < 16; ++i)
    __builtin_memcpy(static_cast<char*>(base) + i * stride, emulated_tiles[tile].row[i], 64);
}

inline void emulated_zero(int tile) {
  emulated_tiles[tile] = EmulatedTile{};
}

inline float emulated_bf16(uint32_t bits) {
  bits <<= 16;
  if ((bits & 0x7f800000u) == 0) bits = 0;  // zero or denormal
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

// c[m][n] += sum over k of a[m][k].lo b[k][n].lo + a[m][k].hi b[k][n].hi
inline void emulated_dot(int c, int a, int b) {
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 16; ++n) {
      float sum;
      __builtin_memcpy(&sum, &emulated_tiles[c].row[m][n], sizeof sum);
      for (int k = 0; k < 16; ++k) {
        const uint32_t x = emulated_tiles[a].row[m][k], y = emulated_tiles[b].row[k][n];
        sum += emulated_bf16(x & 0xffffu) * emulated_bf16(y & 0xffffu);
        sum += emulated_bf16(x >> 16) * emulated_bf16(y >> 16);
      }
      __builtin_memcpy(&emulated_tiles[c].row[m][n], &sum, sizeof sum);
    }
  }
}

}  // namespace
}  // namespace lacuna::cpu

#define LACUNA_TILE_CONFIG(config) ((void)(config), emulated_poison())
#define LACUNA_TILE_RELEASE() emulated_poison()
#define LACUNA_TILE_LOAD(tile, base, stride) emulated_load(tile, base, stride)
#define LACUNA_TILE_STORE(tile, base, stride) emulated_store(tile, base, stride)
#define LACUNA_TILE_ZERO(tile) emulated_zero(tile)
#define LACUNA_TILE_DOT(c, a, b) emulated_dot(c, a, b)
