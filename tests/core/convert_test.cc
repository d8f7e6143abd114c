// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/convert.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "lacuna/core/bf16.h"
#include "lacuna/core/error.h"
#include "lacuna/core/threads.h"

namespace lacuna {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
const float kNaN = std::numeric_limits<float>::quiet_NaN();

// Value of an IEEE-like small float, from the definition of its fields.
double small_float(uint32_t bits, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int sign = bits >> (exponent_bits + mantissa_bits) & 1;
  const int e = bits >> mantissa_bits & ((1 << exponent_bits) - 1);
  const double m = (bits & ((1u << mantissa_bits) - 1)) / std::pow(2.0, mantissa_bits);
  double v = e == 0 ? m * std::pow(2.0, 1 - bias) : (1 + m) * std::pow(2.0, e - bias);
  if (e == (1 << exponent_bits) - 1) v = m == 0 ? kInf : kNaN;
  return sign ? -v : v;
}

void expect_same(float got, double want, int64_t where) {
  if (std::isnan(want)) {
    EXPECT_TRUE(std::isnan(got)) << where;
  } else {
    EXPECT_EQ(got, static_cast<float>(want)) << where;
    EXPECT_EQ(std::signbit(got), std::signbit(want)) << where;
  }
}

template <typename T>
std::vector<float> to_f32(const std::vector<T>& bytes, DType dtype, int64_t count) {
  std::vector<float> out(count, 77.0f);
  convert(make_view(const_cast<T*>(bytes.data()), dtype, {count}),
          make_view(out.data(), DType::f32, {count}));
  return out;
}

TEST(Convert, EveryHalfAndBf16AndF8Value) {
  std::vector<uint16_t> all(65536);
  for (int i = 0; i < 65536; ++i) all[i] = static_cast<uint16_t>(i);
  const auto half = to_f32(all, DType::f16, 65536), brain = to_f32(all, DType::bf16, 65536);
  for (int i = 0; i < 65536; ++i) {
    expect_same(half[i], small_float(i, 5, 10), i);
    expect_same(brain[i], small_float(i, 8, 7), i);
    expect_same(half_to_float(static_cast<uint16_t>(i)), small_float(i, 5, 10), i);
  }
  std::vector<uint8_t> bytes(256);
  for (int i = 0; i < 256; ++i) bytes[i] = static_cast<uint8_t>(i);
  const auto e4m3 = to_f32(bytes, DType::f8_e4m3, 256), e5m2 = to_f32(bytes, DType::f8_e5m2, 256);
  for (int i = 0; i < 256; ++i) {
    expect_same(e5m2[i], small_float(i, 5, 2), i);
    // e4m3fn spends the top exponent on numbers up to 448; only 0x7f and 0xff are NaN.
    const double top = (i & 0x80 ? -1 : 1) * (1 + (i & 7) / 8.0) * 256;
    const bool is_top = (i & 0x78) == 0x78;
    expect_same(e4m3[i], (i & 0x7f) == 0x7f ? kNaN : is_top ? top : small_float(i, 4, 3), i);
  }
  EXPECT_EQ(e4m3[0x7e], 448.0f);
}

// Nearest representable neighbour with ties to the even code, by search over the positive codes.
uint16_t nearest_code(double magnitude, int exponent_bits, int mantissa_bits) {
  uint32_t low = 0, high = ((1u << exponent_bits) - 1) << mantissa_bits;  // high = infinity
  while (high - low > 1) {
    const uint32_t middle = (low + high) / 2;
    (small_float(middle, exponent_bits, mantissa_bits) <= magnitude ? low : high) = middle;
  }
  const double a = small_float(low, exponent_bits, mantissa_bits);
  // Overflow rounds as if the next binade existed.
  const double b = 2 * a - small_float(low - 1, exponent_bits, mantissa_bits);
  const double above = std::isinf(small_float(high, exponent_bits, mantissa_bits))
                           ? b
                           : small_float(high, exponent_bits, mantissa_bits);
  const double to_a = magnitude - a, to_b = above - magnitude;
  return static_cast<uint16_t>(to_a < to_b || (to_a == to_b && low % 2 == 0) ? low : high);
}

TEST(Convert, RoundsToNearestEven) {
  std::mt19937 random(5);
  std::vector<float> values;
  for (int i = 0; i < 20000; ++i) {
    // Any magnitude, denormals of both types included.
    const int exponent = static_cast<int>(random() % 280) - 152;
    values.push_back(std::ldexp(1.0f + random() / 4294967296.0f, exponent));
  }
  // Exact ties between neighbours, and both sides of each.
  for (int i = 1; i < 2000; ++i) {
    const double tie = (small_float(i, 5, 10) + small_float(i + 1, 5, 10)) / 2;
    values.push_back(static_cast<float>(tie));
    values.push_back(std::nextafter(static_cast<float>(tie), 0.0f));
    values.push_back(std::nextafter(static_cast<float>(tie), kInf));
    values.push_back(std::bit_cast<float>((static_cast<uint32_t>(i * 16) << 16) | 0x8000u));
  }
  std::erase_if(values, [](float v) { return !std::isfinite(v); });
  const auto n = static_cast<int64_t>(values.size());
  std::vector<uint16_t> half(n), brain(n);
  const TensorView src = make_view(values.data(), DType::f32, {n});
  convert(src, make_view(half.data(), DType::f16, {n}));
  convert(src, make_view(brain.data(), DType::bf16, {n}));
  for (int64_t i = 0; i < n; ++i) {
    ASSERT_EQ(half[i], nearest_code(values[i], 5, 10)) << values[i];
    ASSERT_EQ(brain[i], nearest_code(values[i], 8, 7)) << values[i];
    ASSERT_EQ(float_to_half(values[i]), half[i]) << values[i];
    ASSERT_EQ(BFloat16(values[i]).bits, brain[i]) << values[i];
  }
}

TEST(Convert, SpecialValuesSurviveInVectorAndTail) {
  // A NaN whose payload lies only in the low bits must not turn into infinity.
  const float sly = std::bit_cast<float>(0x7f800001u);
  std::vector<float> values;
  for (int i = 0; i < 11; ++i) values.push_back(i % 2 ? sly : -kInf);
  values.push_back(-0.0f);
  values.push_back(3.4e38f);  // rounds to infinity in bf16 as well
  const auto n = static_cast<int64_t>(values.size());
  for (DType dtype : {DType::bf16, DType::f16}) {
    const Tensor narrow = converted(make_view(values.data(), DType::f32, {n}), dtype);
    const Tensor back = converted(narrow, DType::f32);
    for (int i = 0; i < 11; ++i) {
      if (i % 2) {
        EXPECT_TRUE(std::isnan(back.as<float>()[i])) << i;
      } else {
        EXPECT_EQ(back.as<float>()[i], -kInf) << i;
      }
    }
    EXPECT_TRUE(std::signbit(back.as<float>()[11]));
    EXPECT_EQ(back.as<float>()[12], kInf);
  }
}

TEST(Convert, IntegersDoublesScaleAndUnalignedSources) {
  std::vector<int64_t> wide = {-3, 0, 1 << 30};
  EXPECT_EQ(to_f32(wide, DType::i64, 3), (std::vector<float>{-3, 0, 1 << 30}));
  EXPECT_EQ(to_f32(std::vector<int8_t>{-128, 127}, DType::i8, 2), (std::vector<float>{-128, 127}));
  EXPECT_EQ(to_f32(std::vector<uint8_t>{255}, DType::u8, 1), (std::vector<float>{255}));
  EXPECT_EQ(to_f32(std::vector<int16_t>{-300}, DType::i16, 1), (std::vector<float>{-300}));
  EXPECT_EQ(to_f32(std::vector<int32_t>{-70000}, DType::i32, 1), (std::vector<float>{-70000}));
  const auto doubles = to_f32(std::vector<double>{1e300, 0.1, -1e-50}, DType::f64, 3);
  EXPECT_EQ(doubles, (std::vector<float>{kInf, 0.1f, -0.0f}));

  std::vector<float> values(37);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i) - 11.25f;
  std::vector<uint8_t> shifted(1 + values.size() * 4);
  std::memcpy(shifted.data() + 1, values.data(), values.size() * 4);
  const TensorView odd = make_view(shifted.data() + 1, DType::f32, {37});
  const Tensor copy = converted(odd, DType::f32), scaled = converted(odd, DType::f32, 0.5f);
  for (int i = 0; i < 37; ++i) {
    EXPECT_EQ(copy.as<float>()[i], values[i]);
    EXPECT_EQ(scaled.as<float>()[i], values[i] / 2);
  }
}

TEST(Convert, SameBytesForAnyThreadCount) {
  std::vector<float> values(300'001);
  std::mt19937 random(7);
  for (float& v : values) v = random() / 1e9f - 2;
  const TensorView src = make_view(values.data(), DType::f32, {300'001});
  const int before = num_threads();
  set_num_threads(1);
  const Tensor one = converted(src, DType::bf16, 3.0f);
  set_num_threads(3);
  const Tensor three = converted(src, DType::bf16, 3.0f);
  set_num_threads(before);
  EXPECT_EQ(std::memcmp(one.view().data, three.view().data, 600'002), 0);
  EXPECT_EQ(one.as<BFloat16>()[300'000].bits, BFloat16(values[300'000] * 3.0f).bits);
}

TEST(Convert, RefusesWhatItCannotDo) {
  Tensor a(DType::f32, {4, 2}), b(DType::f32, {2, 4}), flags(DType::boolean, {4, 2}),
      bytes(DType::i8, {4, 2});
  EXPECT_THROW(convert(a, b), Error);
  EXPECT_THROW(convert(flags, a), Error);
  EXPECT_THROW(convert(a, bytes), Error);
  TensorView strided = b;
  std::swap(strided.shape[0], strided.shape[1]);
  std::swap(strided.stride[0], strided.stride[1]);
  EXPECT_THROW(convert(strided, a), Error);
  // Half a block.
  Tensor q(DType::q8_0, {32}), out(DType::f32, {16});
  EXPECT_THROW(convert(make_view(q.view().data, DType::q8_0, {16}), out), Error);
}

// --- GGUF blocks: each element straight from the layout's definition
// ------------------------------

struct Block {
  const uint8_t* p;
  double half(int at) const { return small_float(p[at] | p[at + 1] << 8, 5, 10); }
  // Bits [bit, bit + width) of the byte string starting at `at`, little-endian.
  int bits(int at, int bit, int width) const {
    int value = 0;
    for (int i = 0; i < width; ++i) {
      value |= (p[at + (bit + i) / 8] >> ((bit + i) % 8) & 1) << i;
    }
    return value;
  }
  int nibble(int at, int byte, int high) const { return bits(at, 8 * byte + 4 * high, 4); }
  // 6-bit scale (which = 0) or minimum (which = 1) of sub-block j of a k-block.
  int k_scale(int j, int which) const {
    if (j < 4) return bits(4, 8 * (j + 4 * which), 6);
    return bits(4, 8 * (j + 4) + 4 * which, 4) | bits(4, 8 * (j - 4 + 4 * which) + 6, 2) << 4;
  }
};

double expected(DType dtype, Block b, int i) {
  switch (dtype) {
    case DType::q8_0: {
      const int q = b.p[2 + i];
      return b.half(0) * (q < 128 ? q : q - 256);
    }
    case DType::q4_0:
      return b.half(0) * (b.nibble(2, i % 16, i / 16) - 8);
    case DType::q4_1:
      return b.half(0) * b.nibble(4, i % 16, i / 16) + b.half(2);
    case DType::q5_0:
      return b.half(0) * (b.nibble(6, i % 16, i / 16) + 16 * b.bits(2, i, 1) - 16);
    case DType::q5_1:
      return b.half(0) * (b.nibble(8, i % 16, i / 16) + 16 * b.bits(4, i, 1)) + b.half(2);
    case DType::q2_k: {
      const int run = i / 16, q = b.bits(16 + i / 128 * 32 + i % 32, i / 32 % 4 * 2, 2);
      return b.half(80) * b.nibble(0, run, 0) * q - b.half(82) * b.nibble(0, run, 1);
    }
    case DType::q3_k: {
      const int run = i / 16, q = b.bits(32 + i / 128 * 32 + i % 32, i / 32 % 4 * 2, 2) +
                                  4 * b.bits(i % 32, i / 32, 1);
      const int scale = b.nibble(96, run % 8, run / 8) + 16 * b.bits(104 + run % 4, run / 4 * 2, 2);
      return b.half(108) * (scale - 32) * (q - 4);
    }
    case DType::q4_k: {
      const int j = i / 32, q = b.nibble(16, i / 64 * 32 + i % 32, j % 2);
      return b.half(0) * b.k_scale(j, 0) * q - b.half(2) * b.k_scale(j, 1);
    }
    case DType::q5_k: {
      const int j = i / 32;
      const int q = b.nibble(48, i / 64 * 32 + i % 32, j % 2) + 16 * b.bits(16, i % 32 * 8 + j, 1);
      return b.half(0) * b.k_scale(j, 0) * q - b.half(2) * b.k_scale(j, 1);
    }
    default: {  // q6_k
      const int half = i / 128, within = i % 128, run = within / 32, column = within % 32;
      const int q = b.nibble(64 * half, run % 2 * 32 + column, run / 2) +
                    16 * b.bits(128 + 32 * half, 8 * column + 2 * run, 2);
      const int scale = b.p[192 + i / 16];
      return b.half(208) * (scale < 128 ? scale : scale - 256) * (q - 32);
    }
  }
}

// Where a block's first f16 lies. Of types with two, the second follows it.
int first_half(DType dtype) {
  return dtype == DType::q2_k ? 80 : dtype == DType::q3_k ? 108 : dtype == DType::q6_k ? 208 : 0;
}

class Dequantize : public testing::TestWithParam<DType> {};

TEST_P(Dequantize, MatchesTheLayoutElementByElement) {
  const DType dtype = GetParam();
  const int64_t block = dtype >= DType::q2_k ? 256 : 32;
  const int64_t block_bytes = storage_bytes(dtype, block), blocks = 24;
  std::mt19937 random(11);
  std::vector<uint8_t> data(blocks * block_bytes + 1);
  for (auto& byte : data) byte = static_cast<uint8_t>(random());
  uint8_t* base = data.data() + 1;  // unaligned on purpose
  for (int64_t b = 0; b < blocks; ++b) {
    // Random but finite scales: clear the top exponent bit of each f16.
    const int first = first_half(dtype);
    base[b * block_bytes + first + 1] &= 0xbf;
    if (first + 2 < block_bytes && dtype != DType::q8_0) base[b * block_bytes + first + 3] &= 0xbf;
  }
  Tensor out(DType::f32, {blocks, block});
  convert(make_view(base, dtype, {blocks, block}), out);
  for (int64_t b = 0; b < blocks; ++b) {
    const Block view{base + b * block_bytes};
    for (int i = 0; i < block; ++i) {
      const double want = expected(dtype, view, i);
      const double magnitude = std::abs(view.half(first_half(dtype))) + std::abs(want);
      ASSERT_NEAR(out.as<float>()[b * block + i], want, 1e-4 * magnitude)
          << dtype_name(dtype) << " block " << b << " element " << i;
    }
  }
  // bf16 output is the rounded f32 output.
  const Tensor narrow = converted(make_view(base, dtype, {blocks, block}), DType::bf16);
  for (int64_t i = 0; i < out.numel(); ++i) {
    ASSERT_EQ(narrow.as<BFloat16>()[i].bits, BFloat16(out.as<float>()[i]).bits);
  }
}

INSTANTIATE_TEST_SUITE_P(AllBlockTypes, Dequantize,
                         testing::Values(DType::q8_0, DType::q4_0, DType::q4_1, DType::q5_0,
                                         DType::q5_1, DType::q2_k, DType::q3_k, DType::q4_k,
                                         DType::q5_k, DType::q6_k),
                         [](const auto& info) { return std::string(dtype_name(info.param)); });

TEST(Dequantize, HandMadeBlocks) {
  // 1.0 = 0x3c00, 0.5 = 0x3800 in f16.
  std::vector<uint8_t> q4_0(18, 0x98);  // low nibble 8 -> 0, high nibble 9 -> 1
  q4_0[0] = 0x00, q4_0[1] = 0x38;
  auto w = to_f32(q4_0, DType::q4_0, 32);
  EXPECT_EQ(w[0], 0.0f);
  EXPECT_EQ(w[15], 0.0f);
  EXPECT_EQ(w[16], 0.5f);
  EXPECT_EQ(w[31], 0.5f);
  std::vector<uint8_t> q8_0(34, 0xff);  // -1
  q8_0[0] = 0x00, q8_0[1] = 0x3c, q8_0[33] = 0x7f;
  w = to_f32(q8_0, DType::q8_0, 32);
  EXPECT_EQ(w[0], -1.0f);
  EXPECT_EQ(w[31], 127.0f);
}

}  // namespace
}  // namespace lacuna
