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

using Decode = void (*)(Bytes src, int64_t count, float* out);

Decode decoder(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return decode_f32;
    case DType::f16:
      return decode_f16;
    case DType::bf16:
      return decode_bf16;
    case DType::f64:
      return decode_plain<double>;
    case DType::f8_e4m3:
      return decode_f8_e4m3;
    case DType::f8_e5m2:
      return decode_f8_e5m2;
    case DType::i64:
      return decode_plain<int64_t>;
    case DType::i32:
      return decode_plain<int32_t>;
    case DType::i16:
      return decode_plain<int16_t>;
    case DType::i8:
      return decode_plain<int8_t>;
    case DType::u8:
      return decode_plain<uint8_t>;
    default:
      return nullptr;
  }
}

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
