// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/convert.h"

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>

#include "lacuna/core/bf16.h"
#include "lacuna/core/error.h"
#include "lacuna/core/threads.h"

namespace lacuna {
namespace {

using Bytes = const uint8_t*;

// Sources may be unaligned (memory-mapped files), so every wide read goes through memcpy.
template <typename T>
T read(Bytes p) {
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}

float read_half(Bytes p) {
  return half_to_float(read<uint16_t>(p));
}

template <typename T>
void decode_plain(Bytes src, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(read<T>(src + i * sizeof(T)));
}

void decode_f32(Bytes src, int64_t count, float* out) {
  std::memcpy(out, src, static_cast<size_t>(count) * sizeof(float));
}

void decode_bf16(Bytes src, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src + 2 * i));
    const __m256i wide = _mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16);
    _mm256_storeu_ps(out + i, _mm256_castsi256_ps(wide));
  }
  for (; i < count; ++i) {
    out[i] = std::bit_cast<float>(uint32_t{read<uint16_t>(src + 2 * i)} << 16);
  }
}

void decode_f16(Bytes src, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src + 2 * i));
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(half));
  }
  for (; i < count; ++i) out[i] = read_half(src + 2 * i);
}

// All 256 values of an 8-bit float with `mantissa_bits` and the usual bias.
std::array<float, 256> make_f8_table(int mantissa_bits, bool has_infinity) {
  std::array<float, 256> table{};
  const int exponent_bits = 7 - mantissa_bits;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int top = (1 << exponent_bits) - 1;
  for (int code = 0; code < 256; ++code) {
    const int exponent = (code & 0x7f) >> mantissa_bits;
    const int mantissa = code & ((1 << mantissa_bits) - 1);
    float value;
    if (exponent == top && has_infinity) {
      value = mantissa == 0 ? std::numeric_limits<float>::infinity()
                            : std::numeric_limits<float>::quiet_NaN();
    } else if ((code & 0x7f) == 0x7f && !has_infinity) {
      value = std::numeric_limits<float>::quiet_NaN();
    } else if (exponent == 0) {
      value = std::ldexp(static_cast<float>(mantissa), 1 - bias - mantissa_bits);
    } else {
      value = std::ldexp(static_cast<float>(mantissa + (1 << mantissa_bits)),
                         exponent - bias - mantissa_bits);
    }
    table[code] = (code & 0x80) != 0 ? -value : value;
  }
  return table;
}

void decode_f8_e4m3(Bytes src, int64_t count, float* out) {
  static const std::array<float, 256> table = make_f8_table(3, false);
  for (int64_t i = 0; i < count; ++i) out[i] = table[src[i]];
}

void decode_f8_e5m2(Bytes src, int64_t count, float* out) {
  static const std::array<float, 256> table = make_f8_table(2, true);
  for (int64_t i = 0; i < count; ++i) out[i] = table[src[i]];
}

// --- GGUF block types: f16 scales in front of (or behind) packed integers ------------------------

constexpr int kSmallBlock = 32, kSuperBlock = 256;

void decode_q8_0(Bytes src, int64_t count, float* out) {
  for (; count > 0; count -= kSmallBlock, src += 34, out += kSmallBlock) {
    const float d = read_half(src);
    for (int i = 0; i < kSmallBlock; ++i) out[i] = d * static_cast<int8_t>(src[2 + i]);
  }
}

// Elements 0..15 are the low nibbles, 16..31 the high ones: w = d (q - 8), or d q + m.
template <bool kHasMin>
void decode_q4(Bytes src, int64_t count, float* out) {
  constexpr int kHead = kHasMin ? 4 : 2;
  for (; count > 0; count -= kSmallBlock, src += kHead + 16, out += kSmallBlock) {
    const float d = read_half(src);
    const float m = kHasMin ? read_half(src + 2) : 0.0f;
    constexpr int kZero = kHasMin ? 0 : 8;
    const Bytes q = src + kHead;
    for (int i = 0; i < 16; ++i) {
      out[i] = d * ((q[i] & 15) - kZero) + m;
      out[i + 16] = d * ((q[i] >> 4) - kZero) + m;
    }
  }
}

// As q4 with the fifth bit of element i in bit i of a u32: w = d (q - 16), or d q + m.
template <bool kHasMin>
void decode_q5(Bytes src, int64_t count, float* out) {
  constexpr int kHead = kHasMin ? 4 : 2;
  for (; count > 0; count -= kSmallBlock, src += kHead + 20, out += kSmallBlock) {
    const float d = read_half(src);
    const float m = kHasMin ? read_half(src + 2) : 0.0f;
    constexpr int kZero = kHasMin ? 0 : 16;
    const auto high = read<uint32_t>(src + kHead);
    const Bytes q = src + kHead + 4;
    for (int i = 0; i < 16; ++i) {
      const int low_q = (q[i] & 15) | static_cast<int>((high >> i) & 1) << 4;
      const int high_q = (q[i] >> 4) | static_cast<int>((high >> (i + 16)) & 1) << 4;
      out[i] = d * static_cast<float>(low_q - kZero) + m;
      out[i + 16] = d * static_cast<float>(high_q - kZero) + m;
    }
  }
}

// Runs of 16 elements have a scale each; run r has bit pair r / 2 % 4 of the 16 bytes from
// 32 (r / 8) + 16 (r % 2) on. Of q2_k the scale's upper half is that of a minimum:
// {16 B scales and minima, 64 B pairs, f16 d, dmin}; w = d scale q - dmin min.
void decode_q2_k(Bytes src, int64_t count, float* out) {
  for (; count > 0; count -= kSuperBlock, src += 84) {
    const float d = read_half(src + 80), dmin = read_half(src + 82);
    for (int run = 0; run < 16; ++run, out += 16) {
      const float scale = d * static_cast<float>(src[run] & 15);
      const float min = dmin * static_cast<float>(src[run] >> 4);
      const Bytes q = src + 16 + 32 * (run / 8) + 16 * (run % 2);
      const int shift = run / 2 % 4 * 2;
      for (int i = 0; i < 16; ++i) out[i] = scale * static_cast<float>((q[i] >> shift) & 3) - min;
    }
  }
}

// Pairs as q2_k, with a third bit of its own: bit r / 2 of the 16 bytes from 16 (r % 2) on.
// {32 B high bits, 64 B pairs, 12 B of 16 six-bit scales, f16 d}; w = d (scale - 32) (q - 4). Run r
// has its scale's low four bits in nibble r / 8 of byte r % 8, the others in pair r / 4 of byte
// 8 + r % 4.
void decode_q3_k(Bytes src, int64_t count, float* out) {
  for (; count > 0; count -= kSuperBlock, src += 110) {
    const float d = read_half(src + 108);
    const Bytes scales = src + 96;
    for (int run = 0; run < 16; ++run, out += 16) {
      const int low = (scales[run % 8] >> (run / 8 * 4)) & 15;
      const int high = (scales[8 + run % 4] >> (run / 4 * 2)) & 3;
      const float scale = d * static_cast<float>((low | high << 4) - 32);
      const Bytes q = src + 32 + 32 * (run / 8) + 16 * (run % 2), third = src + 16 * (run % 2);
      const int shift = run / 2 % 4 * 2, bit = run / 2;
      for (int i = 0; i < 16; ++i) {
        const int value = ((q[i] >> shift) & 3) | ((third[i] >> bit) & 1) << 2;
        out[i] = scale * static_cast<float>(value - 4);
      }
    }
  }
}

// The 6-bit scale and minimum of each of 8 sub-blocks, packed in 12 bytes: sub-blocks 0..3 have
// theirs in the low six bits of bytes j and j + 4; sub-blocks 4..7 have four bits in byte j + 4 and
// the upper two in the top of bytes j - 4 and j.
struct ScaleMin {
  int scale, min;
};
ScaleMin scale_min(Bytes s, int j) {
  if (j < 4) return {s[j] & 63, s[j + 4] & 63};
  return {(s[j + 4] & 15) | (s[j - 4] >> 6) << 4, (s[j + 4] >> 4) | (s[j] >> 6) << 4};
}

// w = d scale q - dmin min over sub-blocks of 32; each 32 bytes hold two sub-blocks, low nibbles
// first. q5_k adds a fifth bit: bit j of byte i belongs to element i of sub-block j.
template <bool kFifthBit>
void decode_k45(Bytes src, int64_t count, float* out) {
  constexpr int kHead = 16, kHigh = kFifthBit ? 32 : 0;
  for (; count > 0; count -= kSuperBlock, src += kHead + kHigh + 128) {
    const float d = read_half(src), dmin = read_half(src + 2);
    const Bytes high = src + kHead, q = src + kHead + kHigh;
    for (int j = 0; j < 8; ++j, out += 32) {
      const ScaleMin sm = scale_min(src + 4, j);
      const float scale = d * static_cast<float>(sm.scale), min = dmin * static_cast<float>(sm.min);
      const Bytes nibbles = q + 32 * (j / 2);
      const int shift = j % 2 * 4;
      for (int i = 0; i < 32; ++i) {
        int value = (nibbles[i] >> shift) & 15;
        if constexpr (kFifthBit) value |= ((high[i] >> j) & 1) << 4;
        out[i] = scale * static_cast<float>(value) - min;
      }
    }
  }
}

// {128 B low nibbles, 64 B high bit pairs, i8 scales[16], f16 d}; w = d scale (q - 32). Each half
// of 128 elements is four runs of 32: run r has low bits in nibble r / 2 of bytes 32 (r % 2) + i,
// high bits in pair r of byte i; a scale covers 16 elements.
void decode_q6_k(Bytes src, int64_t count, float* out) {
  for (; count > 0; count -= kSuperBlock, src += 210) {
    const float d = read_half(src + 208);
    for (int half = 0; half < 2; ++half) {
      const Bytes low = src + 64 * half, high = src + 128 + 32 * half;
      const Bytes scales = src + 192 + 8 * half;
      for (int run = 0; run < 4; ++run, out += 32) {
        for (int i = 0; i < 32; ++i) {
          const int nibble = (low[32 * (run % 2) + i] >> (run / 2 * 4)) & 15;
          const int value = nibble | ((high[i] >> (2 * run)) & 3) << 4;
          const float scale = d * static_cast<int8_t>(scales[2 * run + i / 16]);
          out[i] = scale * static_cast<float>(value - 32);
        }
      }
    }
  }
}

using Decode = void (*)(Bytes src, int64_t count, float* out);

// clang-format off
Decode decoder(DType dtype) {
  switch (dtype) {
    case DType::f32: return decode_f32;
    case DType::f16: return decode_f16;
    case DType::bf16: return decode_bf16;
    case DType::f64: return decode_plain<double>;
    case DType::f8_e4m3: return decode_f8_e4m3;
    case DType::f8_e5m2: return decode_f8_e5m2;
    case DType::i64: return decode_plain<int64_t>;
    case DType::i32: return decode_plain<int32_t>;
    case DType::i16: return decode_plain<int16_t>;
    case DType::i8: return decode_plain<int8_t>;
    case DType::u8: return decode_plain<uint8_t>;
    case DType::boolean: return nullptr;
    case DType::q8_0: return decode_q8_0;
    case DType::q4_0: return decode_q4<false>;
    case DType::q4_1: return decode_q4<true>;
    case DType::q5_0: return decode_q5<false>;
    case DType::q5_1: return decode_q5<true>;
    case DType::q2_k: return decode_q2_k;
    case DType::q3_k: return decode_q3_k;
    case DType::q4_k: return decode_k45<false>;
    case DType::q5_k: return decode_k45<true>;
    case DType::q6_k: return decode_q6_k;
  }
  return nullptr;
}
// clang-format on

// Round to nearest even; the same bits as BFloat16(float).
void encode_bf16(const float* src, int64_t count, uint8_t* dst) {
  const __m256i bias = _mm256_set1_epi32(0x7fff), one = _mm256_set1_epi32(1);
  const __m256i infinity = _mm256_set1_epi32(0x7f800000);
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff), quiet = _mm256_set1_epi32(0x40);
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256i u = _mm256_castps_si256(_mm256_loadu_ps(src + i));
    const __m256i high = _mm256_srli_epi32(u, 16);
    const __m256i odd = _mm256_and_si256(high, one);
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(bias, odd)), 16);
    const __m256i is_nan = _mm256_cmpgt_epi32(_mm256_and_si256(u, magnitude), infinity);
    const __m256i result = _mm256_blendv_epi8(rounded, _mm256_or_si256(high, quiet), is_nan);
    const __m128i packed =
        _mm_packus_epi32(_mm256_castsi256_si128(result), _mm256_extracti128_si256(result, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + 2 * i), packed);
  }
  for (; i < count; ++i) {
    const uint16_t bits = BFloat16(src[i]).bits;
    std::memcpy(dst + 2 * i, &bits, 2);
  }
}

void encode_f16(const float* src, int64_t count, uint8_t* dst) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + 2 * i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT));
  }
  for (; i < count; ++i) {
    const uint16_t bits = float_to_half(src[i]);
    std::memcpy(dst + 2 * i, &bits, 2);
  }
}

void encode(DType dtype, const float* src, int64_t count, uint8_t* dst) {
  switch (dtype) {
    case DType::bf16:
      return encode_bf16(src, count, dst);
    case DType::f16:
      return encode_f16(src, count, dst);
    default:
      std::memcpy(dst, src, static_cast<size_t>(count) * sizeof(float));
  }
}

void check_arguments(const TensorView& src, const TensorView& dst, std::string_view who) {
  LACUNA_CHECK(src.rank == dst.rank &&
                   std::equal(src.shape.begin(), src.shape.begin() + src.rank, dst.shape.begin()),
               "{}: {} to {}, expected equal shapes", who, src.describe(), dst.describe());
  LACUNA_CHECK(src.contiguous() && dst.contiguous(), "{}: {} to {}, expected contiguous views", who,
               src.describe(), dst.describe());
  LACUNA_CHECK(src.device == Device::cpu && dst.device == Device::cpu,
               "{}: view on a device, expected host memory", who);
  LACUNA_CHECK(dst.dtype == DType::f32 || dst.dtype == DType::bf16 || dst.dtype == DType::f16,
               "{}: cannot write {}, expected f32, bf16 or f16", who, dtype_name(dst.dtype));
  LACUNA_CHECK(decoder(src.dtype) != nullptr, "{}: cannot read {} as numbers", who,
               dtype_name(src.dtype));
}

}  // namespace

float half_to_float(uint16_t bits) {
  return _cvtsh_ss(bits);
}

uint16_t float_to_half(float value) {
  return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
}

void convert(const TensorView& src, const TensorView& dst, float scale, std::string_view who) {
  check_arguments(src, dst, who);
  const int64_t n = src.numel();
  storage_bytes(src.dtype, n);  // whole blocks only
  const Decode decode = decoder(src.dtype);
  const bool copy = src.dtype == dst.dtype && scale == 1.0f;
  // A range is cut into chunks that stay in the first-level cache between decode and encode.
  constexpr int64_t kRange = 1 << 16, kChunk = 1024;
  parallel_ranges(n, kRange, [&](int64_t begin, int64_t end) {
    auto* to = static_cast<uint8_t*>(dst.data) + storage_bytes(dst.dtype, begin);
    const auto* from = static_cast<Bytes>(src.data) + storage_bytes(src.dtype, begin);
    if (copy) {
      std::memcpy(to, from, static_cast<size_t>(storage_bytes(dst.dtype, end - begin)));
      return;
    }
    alignas(64) float chunk[kChunk];
    for (int64_t i = begin; i < end; i += kChunk) {
      const int64_t count = std::min(kChunk, end - i);
      decode(from, count, chunk);
      if (scale != 1.0f) {
        for (int64_t j = 0; j < count; ++j) chunk[j] *= scale;
      }
      encode(dst.dtype, chunk, count, to);
      from += storage_bytes(src.dtype, count);
      to += storage_bytes(dst.dtype, count);
    }
  });
}

Tensor converted(const TensorView& src, DType dtype, float scale, std::string_view who) {
  Tensor result(dtype, std::span<const int64_t>(src.shape.data(), static_cast<size_t>(src.rank)));
  convert(src, result, scale, who);
  return result;
}

}  // namespace lacuna
