// SPDX-License-Identifier: Apache-2.0
// The software tile unit against plain loops. On a processor with AMX the same tests run on the
// hardware, and say whether the software is right.
#include "tests/support/tile_unit.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "lacuna/core/bf16.h"
#include "tests/support/random.h"

namespace lacuna::test {
namespace {

struct alignas(64) Config {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
  void shape(int tile, int height, int bytes) {
    rows[tile] = static_cast<uint8_t>(height);
    row_bytes[tile] = static_cast<uint16_t>(bytes);
  }
};

void configure(const Config& config) {
  __asm__ volatile("ldtilecfg %0" ::"m"(config));
}

// Says what the intrinsics of g++ 12 do not: what is read and written.
#define TILE_LOAD(tile, base, stride)                              \
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(base), \
                   "r"(static_cast<int64_t>(stride))               \
                   : "memory")
#define TILE_STORE(tile, base, stride)                                 \
  __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(base), \
                   "r"(static_cast<int64_t>(stride))                   \
                   : "memory")
void release() {
  __asm__ volatile("tilerelease");
}

class TileUnit : public testing::Test {
 protected:
  void SetUp() override {
    if (with_tile_unit(cpu::machine_isa()) < cpu::Isa::amx)
      GTEST_SKIP() << "this machine lacks AVX512-BF16, which the AMX kernel needs beside tiles";
  }
};

// c [rows, cols] f32 += a [rows, 2 pairs] b, where b [pairs, cols, 2] is as tiles want it.
void expect_dot(int rows, int pairs, int cols) {
  SCOPED_TRACE(testing::PrintToString(std::vector<int>{rows, pairs, cols}));
  Rng random(static_cast<uint64_t>(rows * 1000 + pairs * 20 + cols));
  std::vector<BFloat16> a(static_cast<size_t>(rows * pairs * 2)),
      b(static_cast<size_t>(pairs * cols * 2));
  for (BFloat16& x : a) x = BFloat16(static_cast<float>(random.normal()));
  for (BFloat16& x : b) x = BFloat16(static_cast<float>(random.normal()));
  std::vector<float> c(static_cast<size_t>(rows * cols)), want(c.size());
  for (size_t i = 0; i < c.size(); ++i) c[i] = want[i] = static_cast<float>(random.normal());
  for (int m = 0; m < rows; ++m)
    for (int n = 0; n < cols; ++n)
      for (int k = 0; k < 2 * pairs; ++k)
        want[static_cast<size_t>(m * cols + n)] +=
            static_cast<float>(a[static_cast<size_t>(m * 2 * pairs + k)]) *
            static_cast<float>(b[static_cast<size_t>((k / 2 * cols + n) * 2 + k % 2)]);
  Config config;
  config.shape(1, rows, 4 * cols);
  config.shape(6, rows, 4 * pairs);
  config.shape(7, pairs, 4 * cols);
  configure(config);
  TILE_LOAD(1, c.data(), 4 * cols);
  TILE_LOAD(6, a.data(), 4 * pairs);
  TILE_LOAD(7, b.data(), 4 * cols);
  __asm__ volatile("tdpbf16ps %tmm7, %tmm6, %tmm1");
  TILE_STORE(1, c.data(), 4 * cols);
  release();
  for (size_t i = 0; i < c.size(); ++i) EXPECT_NEAR(c[i], want[i], 2e-5) << i;
}

TEST_F(TileUnit, MultipliesTilesOfAnyShape) {
  expect_dot(16, 16, 16);
  expect_dot(3, 16, 5);
  expect_dot(16, 7, 1);
  expect_dot(1, 1, 16);
}

TEST_F(TileUnit, LoadsAndStoresOnlyItsRows) {
  std::array<uint32_t, 16 * 20> from{}, to{};
  for (size_t i = 0; i < from.size(); ++i) from[i] = static_cast<uint32_t>(i + 1);
  Config config;
  config.shape(2, 5, 12);
  configure(config);
  TILE_LOAD(2, from.data(), 80);
  TILE_STORE(2, to.data(), 64);
  __asm__ volatile("tilezero %tmm2");
  TILE_STORE(2, to.data() + 8, 64);
  release();
  for (size_t row = 0; row < 16; ++row)
    for (size_t i = 0; i < 8; ++i)
      EXPECT_EQ(to[row * 16 + i], row < 5 && i < 3 ? from[row * 20 + i] : 0) << row << " " << i;
}

TEST_F(TileUnit, FindsEveryFormOfAddress) {
  std::array<uint32_t, 64> memory{}, out{};
  for (size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<uint32_t>(i);
  Config config;
  config.shape(0, 2, 4);
  configure(config);
  const auto second = [&] {
    TILE_STORE(0, out.data(), 4);
    return std::array<uint32_t, 2>{out[0], out[1]};
  };
  const auto stride = int64_t{8};
  __asm__ volatile("tileloadd 0x20(%0,%1,2), %%tmm0" ::"r"(memory.data()), "r"(stride) : "memory");
  EXPECT_EQ(second(), (std::array<uint32_t, 2>{8, 12}));
  __asm__ volatile("tileloadd -0x80(%0,%1,4), %%tmm0" ::"r"(memory.data() + 40), "r"(stride)
                   : "memory");
  EXPECT_EQ(second(), (std::array<uint32_t, 2>{8, 16}));
  __asm__ volatile(
      "mov %0, %%r13; mov %1, %%r12; tileloadd 0x90(%%r13,%%r12,1), %%tmm0" ::"r"(memory.data()),
      "r"(int64_t{12})
      : "memory", "r12", "r13");
  EXPECT_EQ(second(), (std::array<uint32_t, 2>{36, 39}));
  __asm__ volatile("tileloadd 0x4(%0), %%tmm0" ::"r"(memory.data())
                   : "memory");  // no index: stride 0
  EXPECT_EQ(second(), (std::array<uint32_t, 2>{1, 1}));
  release();
}

TEST_F(TileUnit, TakesDenormalsForZero) {
  alignas(64) std::array<BFloat16, 32> a{}, b{};
  a[0].bits = 0x007f;  // denormal
  b[0] = BFloat16(1e30f);
  float c = 3.0f;
  Config config;
  config.shape(0, 1, 4);
  config.shape(1, 1, 4);
  config.shape(2, 1, 4);
  configure(config);
  TILE_LOAD(0, &c, 4);
  TILE_LOAD(1, a.data(), 4);
  TILE_LOAD(2, b.data(), 4);
  __asm__ volatile("tdpbf16ps %tmm2, %tmm1, %tmm0");
  TILE_STORE(0, &c, 4);
  release();
  EXPECT_EQ(c, 3.0f);
}

using TileUnitDeathTest = TileUnit;
TEST_F(TileUnitDeathTest, WhatTheManualForbidsEndsTheProcess) {
  EXPECT_EXIT({ __asm__ volatile("tilezero %tmm0"); }, testing::KilledBySignal(SIGILL), "");
  EXPECT_EXIT(
      {
        Config config;
        config.shape(0, 16, 64);
        config.shape(1, 16, 64);
        config.shape(2, 15, 64);  // 16 pairs in the other operand
        configure(config);
        __asm__ volatile("tdpbf16ps %tmm2, %tmm1, %tmm0");
      },
      testing::KilledBySignal(SIGILL), "");
  EXPECT_DEATH(
      {
        Config config;
        config.shape(0, 17, 64);
        configure(config);
      },
      "");
}

}  // namespace
}  // namespace lacuna::test
