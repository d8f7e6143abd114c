// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/tensor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#include "lacuna/core/bf16.h"
#include "lacuna/core/error.h"
#include "lacuna/core/workspace.h"

namespace lacuna {
namespace {

using testing::HasSubstr;

TEST(StorageBytes, BlockTypesFollowGgufAndOverflowIsAnError) {
  struct Case {
    DType dtype;
    int64_t count, bytes;
  };
  const Case cases[] = {{DType::f32, 3, 12},     {DType::f16, 3, 6},      {DType::bf16, 3, 6},
                        {DType::f64, 3, 24},     {DType::f8_e4m3, 3, 3},  {DType::f8_e5m2, 3, 3},
                        {DType::i64, 3, 24},     {DType::i32, 3, 12},     {DType::i16, 3, 6},
                        {DType::i8, 3, 3},       {DType::u8, 3, 3},       {DType::boolean, 3, 3},
                        {DType::q8_0, 64, 68},   {DType::q4_0, 64, 36},   {DType::q4_1, 64, 40},
                        {DType::q5_0, 64, 44},   {DType::q5_1, 64, 48},   {DType::q4_k, 512, 288},
                        {DType::q2_k, 256, 84},  {DType::q3_k, 512, 220}, {DType::q5_k, 512, 352},
                        {DType::q6_k, 512, 420}, {DType::f32, 0, 0}};
  for (const Case& c : cases) {
    EXPECT_EQ(storage_bytes(c.dtype, c.count), c.bytes) << dtype_name(c.dtype);
    EXPECT_EQ(is_quantized(c.dtype), c.dtype >= DType::q8_0);
  }
  EXPECT_THROW(storage_bytes(DType::q8_0, 33), Error);
  EXPECT_THROW(storage_bytes(DType::f32, -1), Error);
  EXPECT_THROW(storage_bytes(DType::f32, INT64_MAX / 2), Error);
}

TEST(Tensor, IsAlignedAndRowMajor) {
  Tensor t(DType::f32, {2, 3, 4});
  EXPECT_EQ(reinterpret_cast<uintptr_t>(t.view().data) % 64, 0u);
  EXPECT_EQ(t.view().stride[0], 12);
  EXPECT_EQ(t.view().stride[2], 1);
  EXPECT_EQ(t.view().describe(), "[2, 3, 4] f32");
  EXPECT_TRUE(t.view().contiguous());
  // Past the size from which memory comes in huge pages, the last element must still be ours.
  Tensor large(DType::u8, {(int64_t{5} << 20) + 3});
  EXPECT_EQ(reinterpret_cast<uintptr_t>(large.view().data) % 64, 0u);
  large.as<uint8_t>()[large.numel() - 1] = 7;
  Tensor moved = std::move(large);
  EXPECT_EQ(moved.as<uint8_t>()[moved.numel() - 1], 7);
  const Tensor zero = Tensor::zeros(DType::q8_0, {2, 32});
  for (int i = 0; i < 68; ++i) EXPECT_EQ(static_cast<const char*>(zero.view().data)[i], 0);
}

TEST(Tensor, ImpossibleSizesAreErrorsNotCrashes) {
  EXPECT_THROW(Tensor(DType::f32, {INT64_MAX}), Error);
  EXPECT_THROW(Tensor(DType::u8, {INT64_MAX}), Error);
  EXPECT_THROW(Tensor(DType::u8, {int64_t{1} << 62}), Error);
  EXPECT_THROW(Tensor(DType::f32, {int64_t{1} << 40, int64_t{1} << 40}), Error);
  EXPECT_THROW(Tensor(DType::f32, {-1}), Error);
  EXPECT_THROW(Tensor(DType::f32, {1, 1, 1, 1, 1, 1}), Error);
  EXPECT_THROW(Tensor(DType::q4_k, {255}), Error);
}

TEST(TensorView, TypedAccessNamesBothTypes) {
  Tensor t(DType::f32, {4});
  try {
    t.as<BFloat16>();
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::AllOf(HasSubstr("[4] f32"), HasSubstr("bf16")));
  }
}

TEST(TensorView, ReshapeAndSliceSeeTheSameMemory) {
  Tensor t(DType::f32, {4, 3, 2});
  std::iota(t.as<float>(), t.as<float>() + 24, 0.0f);
  const TensorView flat = t.view().reshape({2, 12});
  EXPECT_EQ(flat.as<float>()[flat.stride[0]], 12.0f);
  EXPECT_THROW(t.view().reshape({5, 5}), Error);
  const TensorView rows = t.view().slice(1, 3);
  EXPECT_EQ(rows.describe(), "[2, 3, 2] f32");
  EXPECT_EQ(rows.as<float>()[0], 6.0f);
  EXPECT_TRUE(t.view().slice(2, 2).empty());
  EXPECT_THROW(t.view().slice(3, 2), Error);
  EXPECT_THROW(t.view().slice(0, 5), Error);
  EXPECT_THROW(t.view().slice(-1, 2), Error);
  // Whole rows of a quantised matrix.
  Tensor q(DType::q8_0, {4, 64});
  const auto* base = static_cast<const char*>(q.view().data);
  EXPECT_EQ(static_cast<const char*>(q.view().slice(3, 4).data) - base, 3 * 68);
  // A strided view (columns 0..1 of 3) is not contiguous and cannot be reshaped.
  TensorView strided = make_view(t.view().data, DType::f32, {4, 2});
  strided.stride[0] = 6;
  EXPECT_FALSE(strided.contiguous());
  EXPECT_THROW(strided.reshape({8}), Error);
  EXPECT_EQ(strided.slice(1, 2).as<float>()[0], 6.0f);
  // Strides of dimensions of size one carry no meaning.
  TensorView one = make_view(t.view().data, DType::f32, {1, 4});
  one.stride[0] = 999;
  EXPECT_TRUE(one.contiguous());
}

TEST(TensorView, ReusesMemoryAndNarrowsAxes) {
  Tensor t(DType::f32, {4, 6});
  for (int i = 0; i < 24; ++i) t.as<float>()[i] = static_cast<float>(i);
  const TensorView reused = t.view().reuse(DType::bf16, {6, 8});
  EXPECT_EQ(reused.data, t.view().data);
  EXPECT_EQ(reused.describe(), "[6, 8] bf16");
  EXPECT_THROW(t.view().reuse(DType::f32, {5, 5}), Error);
  const TensorView narrow = t.view().narrow(0, 1, 2, 2).narrow(1, 4, 2);
  EXPECT_EQ(narrow.describe(), "[2, 2] f32");
  EXPECT_EQ(narrow.as<float>()[0], 10.0f);
  EXPECT_EQ(narrow.as<float>()[narrow.stride[0] + narrow.stride[1]], 23.0f);
  EXPECT_THROW(t.view().narrow(0, 1, 2, 3), Error);
  EXPECT_THROW(t.view().narrow(2, 0, 1), Error);
}

// Host memory that claims to be elsewhere.
class Elsewhere : public Memory {
 public:
  lacuna::Device device() const override { return Device::cuda; }
  void* allocate(size_t bytes) override {
    ++live;
    return Memory::allocate(bytes);
  }
  void release(void* memory) override {
    --live;
    Memory::release(memory);
  }
  int live = 0;
};

TEST(Workspace, TakesMemoryWhereItIsTold) {
  Elsewhere memory;
  {
    Workspace workspace(memory);
    const TensorView there = workspace.get("a", DType::f32, {3});
    EXPECT_EQ(there.device, Device::cuda);
    EXPECT_THROW(there.as<float>(), Error);
    const TensorView mirror = workspace.mirror("b", there);
    EXPECT_EQ(mirror.describe(), "[3] f32");
    EXPECT_EQ(workspace.mirror("c", mirror).data, mirror.data);
    EXPECT_NE(workspace.host("d", DType::f32, {3}).as<float>(), nullptr);
    EXPECT_EQ(memory.live, 1);
    Tensor moved = Tensor(DType::f32, {2}, memory);
    EXPECT_EQ(moved.view().slice(1, 2).device, Device::cuda);
    EXPECT_EQ(moved.view().reshape({1, 2}).device, Device::cuda);
    EXPECT_EQ(memory.live, 2);
  }
  EXPECT_EQ(memory.live, 0);
  Workspace host;
  const TensorView here = host.get("a", DType::f32, {3});
  EXPECT_EQ(host.mirror("b", here).data, here.data);
  EXPECT_EQ(host.host("a", DType::f32, {3}).data, here.data);
}

TEST(Workspace, BuffersGrowAndNamesDoNotShare) {
  Workspace workspace;
  const TensorView a = workspace.get("a", DType::f32, {4, 4});
  const TensorView b = workspace.get("b", DType::f32, {4, 4});
  EXPECT_NE(a.data, b.data);
  EXPECT_EQ(a.describe(), "[4, 4] f32");
  EXPECT_EQ(workspace.bytes(), 128);
  // Smaller or equal in bytes, whatever the dtype: the same memory.
  EXPECT_EQ(workspace.get("a", DType::bf16, {32}).data, a.data);
  EXPECT_EQ(workspace.get("a", DType::f32, {1}).data, a.data);
  EXPECT_EQ(workspace.bytes(), 128);
  workspace.get("a", DType::f32, {100});
  EXPECT_EQ(workspace.bytes(), 464);
  EXPECT_EQ(workspace.get("b", DType::f32, {16}).data, b.data);
  workspace.release();
  EXPECT_EQ(workspace.bytes(), 0);
}

}  // namespace
}  // namespace lacuna
