// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/context.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "lacuna/core/bf16.h"
#include "lacuna/core/convert.h"
#include "lacuna/core/error.h"
#include "lacuna/core/threads.h"

namespace lacuna {
namespace {

Tensor random_tensor(std::initializer_list<int64_t> shape, unsigned seed) {
  Tensor t(DType::f32, shape);
  std::mt19937 random(seed);
  for (int64_t i = 0; i < t.numel(); ++i) {
    t.as<float>()[i] = static_cast<float>(random()) / 2147483648.0f - 1.0f;
  }
  return t;
}

TEST(Context, AWeightInTheComputeTypeIsNotCopied) {
  const auto backend = make_backend("ref");
  Context ctx{*backend};
  const Tensor w = random_tensor({3, 4}, 1);
  EXPECT_EQ(ctx.weight(w).data, w.view().data);
  EXPECT_EQ(ctx.workspace.bytes(), 0);
}

TEST(Context, OtherTypesAndAddressesGoThroughTheSlot) {
  const auto backend = make_backend("ref");
  Context ctx{*backend, DType::bf16};
  const Tensor w = random_tensor({2, 3, 1, 2, 2}, 2);
  const TensorView narrow = ctx.weight(w, "conv");
  EXPECT_EQ(narrow.describe(), "[2, 3, 1, 2, 2] bf16");
  for (int i = 0; i < 24; ++i) {
    EXPECT_EQ(narrow.as<BFloat16>()[i].bits, BFloat16(w.as<float>()[i]).bits);
  }
  EXPECT_EQ(ctx.weight(w, "conv").data, narrow.data) << "one buffer per slot";
  EXPECT_NE(ctx.weight(w, "other").data, narrow.data);

  ctx.compute = DType::f32;
  std::vector<uint8_t> shifted(4 * 24 + 1);
  std::memcpy(shifted.data() + 1, w.view().data, 4 * 24);
  const TensorView aligned = ctx.weight(make_view(shifted.data() + 1, DType::f32, {24}));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(aligned.data) % 64, 0u);
  EXPECT_EQ(aligned.as<float>()[23], w.as<float>()[23]);
  EXPECT_THROW(ctx.weight(make_view(nullptr, DType::f32, {24})), Error);
}

// Every storage type must give the product with the dequantised matrix.
class LinearTest : public testing::TestWithParam<DType> {};

TEST_P(LinearTest, MultipliesByTheStoredMatrix) {
  const auto backend = make_backend("ref");
  Context ctx{*backend};
  constexpr int64_t kM = 3, kK = 256, kN = 5;
  Linear linear;
  Tensor stored;
  if (GetParam() == DType::q8_0) {
    stored = Tensor(DType::q8_0, {kN, kK});
    auto* bytes = static_cast<uint8_t*>(stored.view().data);
    std::mt19937 random(6);
    for (int64_t i = 0; i < storage_bytes(DType::q8_0, kN * kK); ++i) {
      const uint8_t scale[] = {0x00, 0x20};  // 2^-7 in f16
      bytes[i] = i % 34 < 2 ? scale[i % 34] : static_cast<uint8_t>(random());
    }
  } else {
    stored = converted(random_tensor({kN, kK}, 3), GetParam());
  }
  linear.weight = stored;
  linear.bias = random_tensor({kN}, 4);
  const Tensor x = random_tensor({kM, kK}, 5);
  Tensor out(DType::f32, {kM, kN});
  linear.forward(ctx, x, out);
  const Tensor wide = converted(stored, DType::f32);
  for (int64_t m = 0; m < kM; ++m) {
    for (int64_t n = 0; n < kN; ++n) {
      double sum = linear.bias.as<float>()[n];
      for (int64_t k = 0; k < kK; ++k) {
        sum += double{x.as<float>()[m * kK + k]} * wide.as<float>()[n * kK + k];
      }
      EXPECT_NEAR(out.as<float>()[m * kN + n], sum, 1e-4) << m << " " << n;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(StorageTypes, LinearTest,
                         testing::Values(DType::f32, DType::bf16, DType::f16, DType::q8_0),
                         [](const auto& info) { return std::string(dtype_name(info.param)); });

TEST(Linear, FollowsTheTypeOfItsInputNotOfTheModel) {
  // f32 linears of a bf16 model (time embedding, head) keep their f32 weights unrounded.
  const auto backend = make_backend("ref");
  Context ctx{*backend, DType::bf16};
  Linear linear;
  Tensor w = Tensor::zeros(DType::f32, {1, 1});
  w.as<float>()[0] = 1.0f + 1.0f / 4096;
  linear.weight = w;
  Tensor x = Tensor::zeros(DType::f32, {1, 1}), out = Tensor::zeros(DType::f32, {1, 1});
  x.as<float>()[0] = 1.0f;
  linear.forward(ctx, x, out);
  EXPECT_EQ(out.as<float>()[0], 1.0f + 1.0f / 4096);
}

// The bits of the product made beforehand.
TEST(Linear, AppliesTheScaleOfItsWeight) {
  constexpr int64_t kM = 3, kK = 64, kN = 5;
  constexpr float kScale = 0.3f;
  Tensor stored(DType::f8_e4m3, {kN, kK});
  auto* codes = static_cast<uint8_t*>(stored.view().data);
  std::mt19937 random(7);
  for (int64_t i = 0; i < kN * kK; ++i) codes[i] = static_cast<uint8_t>(random() & 0xbf);  // no NaN
  for (const char* name : {"ref", "cpu"})
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const auto backend = make_backend(name);
      Context ctx{*backend, dtype};
      const Tensor x = converted(random_tensor({kM, kK}, 5), dtype);
      const Tensor made = converted(stored, dtype, kScale);
      Linear scaled, plain;
      scaled.weight = stored;
      scaled.scale = kScale;
      plain.weight = made;
      Tensor a(DType::f32, {kM, kN}), b(DType::f32, {kM, kN});
      scaled.forward(ctx, x, a);
      plain.forward(ctx, x, b);
      EXPECT_EQ(std::memcmp(a.as<float>(), b.as<float>(), sizeof(float) * kM * kN), 0) << name;
    }
}

// A matrix of more elements than are summed at one time, and two updates.
TEST(Linear, AddsUpdatesOfLowRankAndRoundsOnce) {
  constexpr int64_t kN = 700, kK = 1536, kRank = 3;
  static_assert(kN * kK > kLoraSumElements);
  const Tensor base = random_tensor({kN, kK}, 1), down = random_tensor({kK, kRank}, 2);
  const Tensor up[] = {random_tensor({kN, kRank}, 3), random_tensor({kN, 1}, 4)};
  const Tensor down_one = random_tensor({kK, 1}, 5);
  for (const char* name : {"ref", "cpu"})
    for (const DType storage : {DType::f32, DType::bf16, DType::f16})
      for (const DType compute : {DType::f32, DType::bf16}) {
        const auto backend = make_backend(name);
        Context ctx{*backend, compute};
        Linear linear;
        const Tensor stored = converted(base, storage), half = converted(up[1], DType::bf16);
        linear.weight = stored;
        linear.added = {{up[0], down}, {half, down_one}};
        const TensorView made = ctx.weight(linear, "slot");
        ASSERT_EQ(made.dtype, compute);
        const Tensor got = converted(made, DType::f32), wide = converted(stored, DType::f32);
        const Tensor wide_half = converted(half, DType::f32);
        double worst = 0.0;
        for (int64_t i = 0; i < kN * kK; ++i) {
          const int64_t n = i / kK, k = i % kK;
          double sum = wide.as<float>()[i];
          for (int64_t r = 0; r < kRank; ++r)
            sum +=
                double{up[0].as<float>()[n * kRank + r]} * double{down.as<float>()[k * kRank + r]};
          sum += double{wide_half.as<float>()[n]} * double{down_one.as<float>()[k]};
          const double spacing = compute == DType::bf16 ? 0x1p-8 * std::abs(sum) : 0.0;
          worst = std::max(worst, std::abs(got.as<float>()[i] - sum) - spacing);
        }
        EXPECT_LT(worst, 1e-6) << name << " " << dtype_name(storage);
        EXPECT_EQ(ctx.weight(linear, "slot").data, made.data) << "one buffer per slot";
      }
}

TEST(Linear, UpdatesOfLowRankAreTheSameBytesForAnyThreads) {
  const Tensor stored = converted(random_tensor({700, 1536}, 1), DType::bf16);
  const Tensor up = random_tensor({700, 64}, 2), down = random_tensor({1536, 64}, 3);
  Linear linear;
  linear.weight = stored;
  linear.added = {{up, down}};
  const auto backend = make_backend("cpu");
  const int before = num_threads();
  std::vector<std::vector<uint16_t>> made;
  for (const int threads : {1, 2, 3}) {
    set_num_threads(threads);
    Context ctx{*backend, DType::bf16};
    const auto* bits = reinterpret_cast<const uint16_t*>(ctx.weight(linear, "w").as<BFloat16>());
    made.emplace_back(bits, bits + stored.numel());
  }
  set_num_threads(before);
  EXPECT_EQ(made[0], made[1]);
  EXPECT_EQ(made[0], made[2]);
}

TEST(Linear, UpdatesOfLowRankTakeNoScaleBesideThem) {
  const auto backend = make_backend("ref");
  Context ctx{*backend};
  const Tensor w = random_tensor({3, 4}, 1), up = random_tensor({3, 1}, 2);
  const Tensor down = random_tensor({4, 1}, 3);
  Linear linear;
  linear.weight = w;
  linear.scale = 2.0f;
  linear.added = {{up, down}};
  EXPECT_THROW(ctx.weight(linear, "w"), Error);
}

TEST(Linear, NamesTheShapesThatDoNotFit) {
  const auto backend = make_backend("ref");
  Context ctx{*backend};
  Linear linear;
  const Tensor w = random_tensor({3, 4}, 1);
  linear.weight = w;
  Tensor x(DType::f32, {2, 5}), out(DType::f32, {2, 3}), good(DType::f32, {2, 4});
  EXPECT_THROW(linear.forward(ctx, x, out), Error);
  EXPECT_THROW(linear.forward(ctx, good, good), Error);
  linear.bias = random_tensor({2}, 1);
  EXPECT_THROW(linear.forward(ctx, good, out), Error);
}

}  // namespace
}  // namespace lacuna
