// SPDX-License-Identifier: Apache-2.0
// Weights as files store them to f32 or bf16, with the numbers of lacuna/core/convert.cc bit for
// bit (NaN aside): every product but the last of a value is exact in f32, so it does not matter
// whether a compiler fuses it.
#pragma once

#include "lacuna/backend/cuda/decode_args.h"
#include "lacuna/backend/cuda/quad.cuh"

namespace lacuna::cuda {

LACUNA_DEVICE int byte_at(const uint8_t* p) {
  return read_global(p);
}
LACUNA_DEVICE float signed_at(const uint8_t* p) {
  return static_cast<float>(static_cast<int8_t>(read_global(p)));
}
LACUNA_DEVICE float half_at(const uint8_t* p) {
  return to_float(read_global(reinterpret_cast<const uint16_t*>(p)), F16());
}

// A format: elements and bytes of a block, and the value of element i of one. Layouts of the GGUF
// types are explained in convert.cc.

struct F8E4M3 {
  static constexpr int kElements = 8, kBytes = 8;
  LACUNA_DEVICE static float at(const uint8_t* block, int i) {
    const int code = byte_at(block + i), exponent = code >> 3 & 15, mantissa = code & 7;
    const int sign = (code & 0x80) << 8;
    if ((code & 0x7f) == 0x7f) return to_float(static_cast<uint16_t>(sign | 0x7fc0), Bf16());
    if (exponent == 0) {
      const float value = static_cast<float>(mantissa) * 0x1p-9f;
      return sign != 0 ? -value : value;
    }
    return to_float(static_cast<uint16_t>(sign | (exponent + 120) << 7 | mantissa << 4), Bf16());
  }
};

struct F8E5M2 {  // the upper half of an f16
  static constexpr int kElements = 8, kBytes = 8;
  LACUNA_DEVICE static float at(const uint8_t* block, int i) {
    return to_float(static_cast<uint16_t>(byte_at(block + i) << 8), F16());
  }
};

struct Half {
  static constexpr int kElements = 8, kBytes = 16;
  LACUNA_DEVICE static float at(const uint8_t* block, int i) { return half_at(block + 2 * i); }
};

struct Q8 {
  static constexpr int kElements = 32, kBytes = 34;
  LACUNA_DEVICE static float at(const uint8_t* block, int i) {
    return half_at(block) * signed_at(block + 2 + i);
  }
};

template <bool kHasMin>
struct Q4 {
  static constexpr int kElements = 32, kHead = kHasMin ? 4 : 2, kBytes = kHead + 16;
  LACUNA_DEVICE static float at(const uint8_t* block, int i) {
    const int q = byte_at(block + kHead + i % 16) >> i / 16 * 4 & 15;
    const float m = kHasMin ? half_at(block + 2) : 0.0f;
    return half_at(block) * static_cast<float>(q - (kHasMin ? 0 : 8)) + m;
  }
};

template <bool kHasMin>
struct Q5 {
  static constexpr int kElements = 32, kHead = kHasMin ? 4 : 2, kBytes = kHead + 20;
  LACUNA_DEVICE static float at(const uint8_t* block, int i) {
    const int high = byte_at(block + kHead + i / 8) >> i % 8 & 1;
    const int q = (byte_at(block + kHead + 4 + i % 16) >> i / 16 * 4 & 15) | high << 4;
    const float m = kHasMin ? half_at(block + 2) : 0.0f;
    return half_at(block) * static_cast<float>(q - (kHasMin ? 0 : 16)) + m;
  }
};

struct Q2K {
  static constexpr int kElements = 256, kBytes = 84;
  LACUNA_DEVICE static float at(const uint8_t* block, int i) {
    const int run = i / 16, scale = byte_at(block + run);
    const int q = byte_at(block + 16 + i / 128 * 32 + i % 32) >> run / 2 % 4 * 2 & 3;
    return half_at(block + 80) * static_cast<float>(scale & 15) * static_cast<float>(q) -
           half_at(block + 82) * static_cast<float>(scale >> 4);
  }
};

struct Q3K {
  static constexpr int kElements = 256, kBytes = 110;
  LACUNA_DEVICE static float at(const uint8_t* block, int i) {
    const int run = i / 16;
    const int low = byte_at(block + 96 + run % 8) >> run / 8 * 4 & 15;
    const int high = byte_at(block + 104 + run % 4) >> run / 4 * 2 & 3;
    const int pair = byte_at(block + 32 + i / 128 * 32 + i % 32) >> run / 2 % 4 * 2 & 3;
    const int third = byte_at(block + i % 32) >> run / 2 & 1;
    return half_at(block + 108) * static_cast<float>((low | high << 4) - 32) *
           static_cast<float>((pair | third << 2) - 4);
  }
};

template <bool kFifthBit>
struct K45 {
  static constexpr int kElements = 256, kHigh = kFifthBit ? 32 : 0, kBytes = 16 + kHigh + 128;
  LACUNA_DEVICE static float at(const uint8_t* block, int i) {
    const int j = i / 32, lane = i % 32;
    const uint8_t* s = block + 4;
    int scale, min;
    if (j < 4) {
      scale = byte_at(s + j) & 63, min = byte_at(s + j + 4) & 63;
    } else {
      scale = (byte_at(s + j + 4) & 15) | byte_at(s + j - 4) >> 6 << 4;
      min = byte_at(s + j + 4) >> 4 | byte_at(s + j) >> 6 << 4;
    }
    int q = byte_at(block + 16 + kHigh + 32 * (j / 2) + lane) >> j % 2 * 4 & 15;
    if constexpr (kFifthBit) q |= (byte_at(block + 16 + lane) >> j & 1) << 4;
    return half_at(block) * static_cast<float>(scale) * static_cast<float>(q) -
           half_at(block + 2) * static_cast<float>(min);
  }
};

struct Q6K {
  static constexpr int kElements = 256, kBytes = 210;
  LACUNA_DEVICE static float at(const uint8_t* block, int i) {
    const int half = i / 128, run = i % 128 / 32, lane = i % 32;
    const int low = byte_at(block + 64 * half + 32 * (run % 2) + lane) >> run / 2 * 4 & 15;
    const int high = byte_at(block + 128 + 32 * half + lane) >> 2 * run & 3;
    const float scale =
        half_at(block + 208) * signed_at(block + 192 + 8 * half + 2 * run + lane / 16);
    return scale * static_cast<float>((low | high << 4) - 32);
  }
};

// A group of elements per thread.
template <class Format>
LACUNA_DEVICE void decode(const DecodeArgs& p) {
  static_assert(Format::kElements % kDecodeGroup == 0, "a group lies in one block");
  const int64_t first =
      (int64_t{block_id()} * kDecodeThreads + thread_id()) * int64_t{kDecodeGroup};
  if (first >= p.elements) return;
  const int64_t block = first / Format::kElements;
  const auto inside = static_cast<int>(first - block * Format::kElements);
  const uint8_t* stored = static_cast<const uint8_t*>(p.from) + block * Format::kBytes;
  LACUNA_UNROLL
  for (int quad = 0; quad < kDecodeGroup; quad += 4) {
    const int64_t left = p.elements - first - quad;
    const int count = left < 0 ? 0 : left < 4 ? static_cast<int>(left) : 4;
    float v[4];
    LACUNA_UNROLL
    for (int e = 0; e < 4; ++e) v[e] = e < count ? Format::at(stored, inside + quad + e) : 0.0f;
    store_quad(p.to, first + quad, 1, count, p.to_bf16, p.vector, v);
  }
}

}  // namespace lacuna::cuda
