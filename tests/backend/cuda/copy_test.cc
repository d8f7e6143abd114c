// SPDX-License-Identifier: Apache-2.0
// Copies between host and device memory against the same copy on the host.
#include "lacuna/backend/cuda/copy.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "lacuna/backend/cuda/driver.h"
#include "lacuna/backend/cuda/emulator/emulated_device.h"
#include "lacuna/backend/cuda/walk.h"
#include "lacuna/core/convert.h"
#include "lacuna/core/copy.h"
#include "lacuna/core/error.h"
#include "tests/support/random.h"

namespace lacuna::test {
namespace {

enum class Place { emulated, gpu };

class CudaCopy : public testing::TestWithParam<Place> {
 protected:
  void SetUp() override {
    try {
      device_ = GetParam() == Place::gpu
                    ? cuda::make_driver_device()
                    : cuda::emulator::make_emulated_device(cuda::Family::sm80, 1);
    } catch (const Error& e) {
      GTEST_SKIP() << e.what();
    }
  }
  std::unique_ptr<cuda::Device> device_;
};

// A view of bytes somewhere: strides in elements, element 0 at `offset`.
struct Layout {
  std::vector<int64_t> shape, stride;
  int64_t offset = 0;
  int64_t elements() const {
    int64_t last = offset;
    for (size_t i = 0; i < shape.size(); ++i) last += (shape[i] - 1) * stride[i];
    return last + 1;
  }
  TensorView view(void* data, DType dtype, Device where) const {
    TensorView v = make_view(data, dtype, shape);
    std::copy(stride.begin(), stride.end(), v.stride.begin());
    v.data = static_cast<char*>(data) + storage_bytes(dtype, offset);
    v.device = where;
    return v;
  }
};

using Bytes = std::vector<unsigned char>;

// Bit for bit, but for what a NaN holds.
bool same_numbers(const TensorView& a, const TensorView& b) {
  const auto size = static_cast<size_t>(storage_bytes(a.dtype, 1));
  const std::vector<double> x = values(a), y = values(b);
  for (size_t i = 0; i < x.size(); ++i) {
    if (std::isnan(x[i]) && std::isnan(y[i])) continue;
    if (std::memcmp(static_cast<char*>(a.data) + i * size, static_cast<char*>(b.data) + i * size,
                    size) != 0)
      return false;
  }
  return true;
}

Bytes pattern(int64_t elements, DType dtype, uint64_t seed) {
  Bytes bytes(static_cast<size_t>(storage_bytes(dtype, elements)));
  Rng rng(seed);
  if (dtype == DType::f32) {
    for (int64_t i = 0; i < elements; ++i) {
      const auto x = static_cast<float>(rng.normal());
      std::memcpy(bytes.data() + 4 * i, &x, 4);
    }
  } else if (dtype == DType::bf16) {
    for (int64_t i = 0; i < elements; ++i) {
      const BFloat16 x(static_cast<float>(rng.normal()));
      std::memcpy(bytes.data() + 2 * i, &x, 2);
    }
  } else {
    for (unsigned char& b : bytes) b = static_cast<unsigned char>(rng.next());
  }
  return bytes;
}

struct Case {
  Layout from, to;
};

std::vector<Case> cases() {
  return {
      {{{7}, {1}}, {{7}, {1}}},
      {{{5, 16}, {16, 1}}, {{5, 16}, {16, 1}}},            // 16 bytes at a time
      {{{5, 16}, {24, 1}, 8}, {{5, 16}, {16, 1}}},         // rows inside wider rows
      {{{3, 5, 8}, {8, 24, 1}}, {{3, 5, 8}, {40, 8, 1}}},  // tokens and heads swapped
      {{{5, 7}, {1, 5}}, {{5, 7}, {7, 1}}},                // a transpose
      {{{2, 3, 4, 5}, {60, 1, 3, 12}}, {{2, 3, 4, 5}, {61, 20, 5, 1}, 1}},
      {{{3, 2, 4, 2, 5}, {20, 0, 5, 0, 1}}, {{3, 2, 4, 2, 5}, {80, 40, 10, 5, 1}}},  // repeats
      {{{4, 9}, {0, 0}}, {{4, 9}, {11, 1}, 2}},  // one value everywhere
      {{{6, 4}, {9, 2}}, {{6, 4}, {1, 11}, 3}},
      {{{300, 3}, {3, 1}}, {{300, 3}, {1, 300}}},
      {{{1, 1, 5}, {99, 7, 1}}, {{1, 1, 5}, {1, 1, 2}}},
      {{{}, {}}, {{}, {}}},
  };
}

TEST_P(CudaCopy, AnyStridesAnySides) {
  const std::pair<DType, DType> types[] = {{DType::f32, DType::f32},  {DType::bf16, DType::bf16},
                                           {DType::f32, DType::bf16}, {DType::bf16, DType::f32},
                                           {DType::u8, DType::u8},    {DType::i64, DType::i64}};
  for (const Case& c : cases())
    for (const auto& [from_type, to_type] : types) {
      const Bytes from = pattern(c.from.elements(), from_type, 1);
      const Bytes before = pattern(c.to.elements(), to_type, 2);
      Bytes expected = before;
      auto* host_from = const_cast<unsigned char*>(from.data());
      copy_elements(c.from.view(host_from, from_type, Device::cpu),
                    c.to.view(expected.data(), to_type, Device::cpu));
      for (bool from_device : {false, true})
        for (bool to_device : {false, true})
          for (int64_t piece : {cuda::kCopyPieceBytes, int64_t{20}}) {
            const cuda::DeviceMemory remote_from(*device_, from), remote_to(*device_, before);
            Bytes after = before;
            void* a = from_device ? remote_from.as<void>() : host_from;
            void* b = to_device ? remote_to.as<void>() : after.data();
            cuda::copy(*device_,
                       c.from.view(a, from_type, from_device ? Device::cuda : Device::cpu),
                       c.to.view(b, to_type, to_device ? Device::cuda : Device::cpu), piece);
            if (to_device) device_->download(after.data(), b, after.size());
            EXPECT_EQ(after, expected)
                << "case " << &c - cases().data() << " " << dtype_name(from_type) << " to "
                << dtype_name(to_type) << (from_device ? " from device" : "")
                << (to_device ? " to device" : "") << " pieces of " << piece;
          }
    }
}

// Stored types, of random bytes and of every 8-bit pattern: the bits of the host's conversion.
TEST_P(CudaCopy, StoredTypesDecodeAsOnTheHost) {
  for (const DType dtype : {DType::f16, DType::f8_e4m3, DType::f8_e5m2, DType::q8_0, DType::q4_0,
                            DType::q4_1, DType::q5_0, DType::q5_1, DType::q2_k, DType::q3_k,
                            DType::q4_k, DType::q5_k, DType::q6_k, DType::i16})
    for (const DType wide : {DType::f32, DType::bf16})
      for (const int64_t rows : {1, 9}) {
        const int64_t columns = is_quantized(dtype) ? 256 : 261;
        Bytes from(static_cast<size_t>(storage_bytes(dtype, rows * columns)));
        Rng rng(7);
        for (unsigned char& b : from) b = static_cast<unsigned char>(rng.next());
        for (size_t i = 0; i < 256 && !is_quantized(dtype); ++i)
          from[i] = static_cast<unsigned char>(i);
        const TensorView stored = make_view(from.data(), dtype, {rows, columns});
        const Tensor expected = converted(stored, wide);
        const std::string context =
            fmt::format("{} {} to {}", rows, dtype_name(dtype), dtype_name(wide));
        const cuda::DeviceMemory remote_from(*device_, from),
            remote_to(*device_, static_cast<size_t>(storage_bytes(wide, rows * columns)));
        const TensorView to = cuda::packed(expected, wide, remote_to.as<void>(), Device::cuda);
        Tensor result(wide, {rows, columns});
        cuda::copy(*device_, stored, to);
        cuda::copy(*device_, to, result);
        EXPECT_TRUE(same_numbers(result, expected)) << context << " from the host";
        if (!cuda::reads(dtype)) continue;
        TensorView there = stored;
        there.data = remote_from.as<void>();
        there.device = Device::cuda;
        cuda::copy(*device_, there, result);
        EXPECT_TRUE(same_numbers(result, expected)) << context << " from the device";
      }
}

TEST_P(CudaCopy, NamesWhatItCannotDo) {
  const cuda::DeviceMemory memory(*device_, 64);
  const Tensor host = Tensor::zeros(DType::f32, {4});
  TensorView remote = make_view(memory.as<void>(), DType::f32, {4});
  remote.device = Device::cuda;
  EXPECT_NO_THROW(cuda::copy(*device_, host, remote));
  EXPECT_NO_THROW(cuda::copy(*device_, remote, remote));
  TensorView longer = remote;
  longer.shape[0] = 5;
  EXPECT_THROW(cuda::copy(*device_, host, longer), Error);
  TensorView integers = remote;
  integers.dtype = DType::i32;
  EXPECT_THROW(cuda::copy(*device_, host, integers), Error);
  TensorView elsewhere = host;  // a host pointer that says it is the device's
  elsewhere.device = Device::cuda;
  EXPECT_THROW(cuda::copy(*device_, elsewhere, remote), Error);
}

INSTANTIATE_TEST_SUITE_P(Devices, CudaCopy, testing::Values(Place::emulated, Place::gpu),
                         [](const testing::TestParamInfo<Place>& info) {
                           return info.param == Place::gpu ? "gpu" : "emulated";
                         });

// Launches of few groups must cover every element of all views once.
TEST(CudaLoops, PiecesCoverEverything) {
  std::vector<float> memory(2000);
  TensorView a = make_view(memory.data(), DType::f32, {5, 7, 11});
  a.stride[0] = 200, a.stride[1] = 20, a.stride[2] = 1;
  TensorView b = make_view(memory.data(), DType::f32, {5, 7, 11});
  b.stride[0] = 1, b.stride[1] = 5, b.stride[2] = 35;
  for (int64_t most : {int64_t{40}, int64_t{100}, int64_t{1000}}) {
    std::vector<int> seen(2000);
    cuda::Loops({a, b}).launch(
        4,
        [&](const cuda::Walk& walk, const int64_t(&at)[cuda::kWalkViews]) {
          EXPECT_LE(walk.total, most);
          int64_t count = 1;
          for (int i = 0; i < walk.rank; ++i) count *= walk.shape[i];
          for (int64_t n = 0; n < count; ++n) {
            int64_t rest = n, from = at[0], to = at[1];
            for (int i = walk.rank - 1; i >= 0; --i) {
              from += rest % walk.shape[i] * walk.stride[0][i];
              to += rest % walk.shape[i] * walk.stride[1][i];
              rest /= walk.shape[i];
            }
            // What the first view calls [i, j, k], so must the second.
            EXPECT_EQ(from / 200 + from % 200 / 20 * 5 + from % 20 * 35, to);
            ++seen[static_cast<size_t>(to)];
          }
        },
        most);
    for (int i = 0; i < 5 * 7 * 11; ++i) EXPECT_EQ(seen[static_cast<size_t>(i)], 1) << i;
  }
}

}  // namespace
}  // namespace lacuna::test
