// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cstdlib>

#include "lacuna/backend/cuda/cuda_backend.h"
#include "lacuna/backend/cuda/emulator/emulated_device.h"
#include "lacuna/backend/cuda/resident.h"
#include "lacuna/backend/ref/ref_backend.h"
#include "lacuna/core/convert.h"
#include "lacuna/core/error.h"
#include "tests/support/compare.h"

namespace lacuna::test {
namespace {

constexpr size_t kBytes = 16 * 16 * 4;  // of a weight here

class CudaWeights : public testing::Test {
 protected:
  CudaWeights() {
    device_->set_limit(5 * kBytes + 100);
    for (uint64_t i = 0; i < 8; ++i) {
      weights_.push_back(random_tensor(DType::f32, {16, 16}, i + 1));
      resident_.constant(weights_.back().view().data, kBytes);
    }
  }
  bool holds(const cuda::Resident::Weight& weight, size_t i) {
    std::vector<float> values(16 * 16);
    device_->download(values.data(), weight.data(), kBytes);
    return std::equal(values.begin(), values.end(), weights_[i].as<float>());
  }
  // Uses weight i; false if what is on the device is not the weight.
  bool use(size_t i) { return holds(resident_.get(weights_[i]), i); }
  int64_t copied_by(const std::vector<size_t>& uses) {
    const int64_t before = resident_.copied();
    for (size_t i : uses) EXPECT_TRUE(use(i));
    return resident_.copied() - before;
  }
  int64_t streamed_by(const std::vector<size_t>& uses) {
    const int64_t before = resident_.streamed();
    for (size_t i : uses) EXPECT_TRUE(use(i));
    return resident_.streamed() - before;
  }

  cuda::emulator::Transfers transfers_;
  std::unique_ptr<cuda::Device> device_ =
      cuda::emulator::make_emulated_device(cuda::Family::sm80, 1, true, &transfers_);
  std::vector<Tensor> weights_;
  cuda::Resident resident_{*device_};
};

TEST_F(CudaWeights, KeepsWhatFits) {
  EXPECT_EQ(copied_by({0, 1, 2, 3, 4, 0, 1, 2, 3, 4}), 5);
  EXPECT_EQ(resident_.bytes(), 5 * kBytes);
  EXPECT_EQ(resident_.streamed(), 0);
  for (const auto& t : transfers_) EXPECT_NE(t.kind, cuda::emulator::Transfer::in);
}

TEST_F(CudaWeights, LeastRecentlyUsedLeavesFirst) {
  copied_by({0, 1, 2, 3, 4, 0, 5});  // 5 pushes out 1
  EXPECT_EQ(resident_.bytes(), 5 * kBytes);
  EXPECT_EQ(copied_by({0, 2, 3, 4, 5}), 0);
  EXPECT_EQ(resident_.streamed(), 0);
  EXPECT_TRUE(use(1));  // all others were used since: it streams, and its slot pushes out 0
  EXPECT_EQ(resident_.streamed(), 1);
  EXPECT_EQ(resident_.bytes(), 4 * kBytes);
  EXPECT_EQ(copied_by({2, 3, 4, 5}), 0);
}

TEST_F(CudaWeights, ALoopOverMoreThanFitsStreamsOnlyTheRest) {
  const std::vector<size_t> loop = {0, 1, 2, 3, 4, 5, 6};
  copied_by(loop);
  EXPECT_EQ(resident_.streamed(), 0);
  streamed_by(loop);  // two slots take their room
  EXPECT_EQ(resident_.bytes(), 3 * kBytes);
  for (int round = 0; round < 3; ++round) {
    const int64_t copied = resident_.copied();
    EXPECT_EQ(streamed_by(loop), 4);
    EXPECT_EQ(resident_.copied(), copied);
  }
  // The others have gone cold: what streamed comes to stay.
  copied_by({0, 1, 2});
  EXPECT_EQ(copied_by({0}), 1);
}

TEST_F(CudaWeights, TwoStreamedWeightsLiveAtOneTime) {
  device_->set_limit(3 * kBytes);
  const cuda::DeviceMemory other(*device_, kBytes);
  for (size_t i = 0; i + 1 < weights_.size(); ++i) use(i);  // none stays
  for (size_t i = 0; i + 1 < weights_.size(); ++i) {
    const auto a = resident_.get(weights_[i]), b = resident_.get(weights_[i + 1]);
    EXPECT_TRUE(holds(a, i) && holds(b, i + 1));
  }
  EXPECT_EQ(device_->use().most, static_cast<int64_t>(3 * kBytes));
}

// As a feed-forward that goes over its rows in chunks uses its two matrices.
TEST_F(CudaWeights, AStreamedWeightIsNotCopiedWhileASlotHoldsIt) {
  copied_by({0, 1, 2, 3, 4, 5, 6});
  streamed_by({0, 1, 2, 3, 4, 5, 6});
  const size_t kept = resident_.bytes();
  EXPECT_EQ(streamed_by({0, 1, 0, 1, 0, 1, 2, 2}), 3);  // 2 takes the slot of 0
  EXPECT_EQ(resident_.bytes(), kept);
}

TEST_F(CudaWeights, OtherMemoryPushesWeightsOutForGood) {
  copied_by({0, 1, 2, 3, 4});
  {
    const cuda::DeviceMemory other(*device_, 2 * kBytes);
    EXPECT_EQ(resident_.bytes(), 3 * kBytes);  // 0 and 1 left
  }
  EXPECT_EQ(copied_by({2, 3, 4}), 0);
  EXPECT_EQ(streamed_by({0, 1, 2, 3, 4}), 2);
  EXPECT_EQ(resident_.bytes(), 3 * kBytes);
  const auto held = resident_.get(weights_[4]);
  EXPECT_THROW(cuda::DeviceMemory(*device_, 4 * kBytes), Error);
  EXPECT_EQ(resident_.bytes(), kBytes);
  EXPECT_TRUE(holds(held, 4)) << "what is in use stays";
  EXPECT_EQ(device_->use().most, static_cast<int64_t>(5 * kBytes));
}

TEST_F(CudaWeights, ForgetMakesRoomAndIsNoticed) {
  copied_by({0, 1, 2});
  resident_.forget(weights_[1].view().data);
  EXPECT_EQ(resident_.bytes(), 2 * kBytes);
  // The same address with other content: at once, and when it is constant again.
  fill_normal(weights_[1], 77);
  EXPECT_EQ(copied_by({1}), 0);  // not constant: for this use only
  resident_.constant(weights_[1].view().data, kBytes);
  EXPECT_EQ(copied_by({1, 0, 2}), 1);
  resident_.forget(weights_[1].view().data);
  resident_.forget(weights_[1].view().data);  // twice does no harm
}

TEST_F(CudaWeights, PromisedTwiceIsForgottenTwice) {
  resident_.constant(weights_[0].view().data, kBytes);
  EXPECT_TRUE(use(0));
  resident_.forget(weights_[0].view().data);
  EXPECT_EQ(copied_by({0}), 0);
  resident_.forget(weights_[0].view().data);
  EXPECT_EQ(resident_.bytes(), 0u);
}

TEST_F(CudaWeights, AWeightInUseOutlivesForget) {
  const Tensor before = random_tensor(DType::f32, {16, 16}, 3);  // as weight 2
  copied_by({0, 1, 3, 4, 5});
  for (const bool streams : {false, true}) {
    if (streams) {
      use(2);
      const cuda::DeviceMemory everything(*device_, 5 * kBytes);
    }
    const auto weight = resident_.get(weights_[2]);
    resident_.forget(weights_[2].view().data);
    fill_normal(weights_[2], 78);
    std::vector<float> values(16 * 16);
    device_->download(values.data(), weight.data(), kBytes);
    EXPECT_TRUE(std::equal(values.begin(), values.end(), before.as<float>())) << streams;
    weights_[2] = random_tensor(DType::f32, {16, 16}, 3);
    resident_.constant(weights_[2].view().data, kBytes);
  }
}

TEST_F(CudaWeights, PartsOfARange) {
  const Tensor file = random_tensor(DType::f32, {64, 16}, 9);
  resident_.constant(file.view().data, 3 * kBytes);
  for (int64_t i : {0, 16}) (void)resident_.get(file.view().slice(i, i + 16));
  EXPECT_EQ(resident_.bytes(), 2 * kBytes);
  (void)resident_.get(file.view().slice(40, 56));  // reaches past the end: not constant
  EXPECT_EQ(resident_.bytes(), 2 * kBytes);
  (void)resident_.get(weights_[0]);
  EXPECT_EQ(resident_.bytes(), 3 * kBytes);
  resident_.forget(file.view().data);
  EXPECT_EQ(resident_.bytes(), kBytes);
}

// A device that is full before its limit is reached.
class Full final : public cuda::Device {
 public:
  int room = 0;  // allocations that there is memory for
  std::string description() const override { return "full"; }
  cuda::Family family() const override { return cuda::Family::sm80; }
  int multiprocessors() const override { return 1; }
  void synchronize() override {}
  size_t free_memory() const override { return 0; }
  void launch(const char*, const char*, const cuda::Grid&, const void*, size_t) override {}
  bool gemm(const cuda::Gemm&) override { return false; }
  cuda::TensorMap tensor_map(const void*, int64_t, int64_t, int64_t, int64_t, int64_t) override {
    return {};
  }
  void launch(const cuda::KernelId&, const cuda::TensorMap (&)[4],
              const cuda::AttendArgs&) override {}
  double attend_ms() override { return 0.0; }

 protected:
  void* take(size_t bytes, bool) override { return room-- > 0 ? std::malloc(bytes) : nullptr; }
  void give_back(void* p) override { std::free(p); }
  void copy_in(void*, const void*, size_t) override {}
  void copy_out(void*, const void*, size_t) override {}
  void copy_beside(void*, const void*, size_t) override {}
};

TEST(CudaDevice, AsksForRoomWhenOthersTookTheMemory) {
  Full device;
  size_t wanted = 0, least = 0;
  device.set_make_room([&](size_t bytes, size_t at_least) {
    wanted = bytes, least = at_least;
    device.room = 1;
  });
  void* p = device.allocate(100);
  EXPECT_EQ(wanted, 100u);
  EXPECT_EQ(least, 100u);
  EXPECT_EQ(device.use().held, 100);
  device.set_make_room([](size_t, size_t) {});
  device.room = 0;
  EXPECT_THROW(device.allocate(100), Error);
  EXPECT_EQ(device.use().held, 100);
  device.release(p);
  EXPECT_EQ(device.use().held, 0);
}

// Weights of one type that are computed with in another: compressed ones cross as they are, once.
TEST(CudaBackend, CopiesOfConstantWeightsComeFromWhatIsKept) {
  const auto backend = make_cuda_backend(
      cuda::emulator::make_emulated_device(cuda::Family::sm80, 1), size_t{1} << 20);
  Tensor w = random_tensor(DType::f32, {8, 24}, 3), back(DType::bf16, {8, 24});
  const Tensor narrow(DType::bf16, {8, 24}, *backend);
  Tensor expected(DType::bf16, {8, 24});
  copy_elements(w, expected);
  backend->constant(w.view().data, 8 * 24 * 4);
  backend->copy(w, narrow);
  fill_normal(w, 4);  // breaks the promise: only what is kept can still give the old values
  backend->copy(w, narrow);
  backend->copy(narrow, back);
  EXPECT_EQ(values(back), values(expected));
  backend->forget(w.view().data);
  backend->copy(w, narrow);
  backend->copy(narrow, back);
  copy_elements(w, expected);
  EXPECT_EQ(values(back), values(expected));
}

TEST(CudaBackend, CompressedWeightsCrossAsTheyAreStored) {
  cuda::emulator::Transfers transfers;
  const auto backend = make_cuda_backend(
      cuda::emulator::make_emulated_device(cuda::Family::sm80, 1, true, &transfers));
  for (const DType dtype : {DType::q8_0, DType::q4_k, DType::q6_k, DType::f8_e4m3}) {
    const int64_t bytes = storage_bytes(dtype, 4 * 256);
    Tensor stored(DType::u8, {bytes});
    for (int64_t i = 0; i < bytes; ++i) stored.as<uint8_t>()[i] = static_cast<uint8_t>(i % 97);
    const TensorView w = make_view(stored.view().data, dtype, {4, 256});
    const Tensor wide(DType::bf16, {4, 256}, *backend);
    Tensor back(DType::bf16, {4, 256});
    backend->constant(w.data, static_cast<size_t>(bytes));
    const int64_t before = backend->memory_use().to_backend;
    for (int use = 0; use < 3; ++use) backend->copy(w, wide);
    EXPECT_EQ(backend->memory_use().to_backend - before, bytes) << dtype_name(dtype);
    EXPECT_EQ(transfers.back().kind, cuda::emulator::Transfer::beside);
    backend->copy(wide, back);
    EXPECT_EQ(values(back), values(converted(w, DType::bf16))) << dtype_name(dtype);
    backend->forget(w.data);
  }
}

// Through the backend: both forms of a weight, with little room and with much.
TEST(CudaBackend, ConstantWeightsGiveTheSameNumbers) {
  const auto ref = make_ref_backend();
  const Tensor x = random_tensor(DType::f32, {9, 24}, 1);
  const Tensor image = random_tensor(DType::f32, {1, 5, 6, 3}, 2);
  Tensor w = random_tensor(DType::f32, {8, 24}, 3),
         kernel = random_tensor(DType::f32, {4, 3, 1, 3, 3}, 4);
  for (size_t limit : {size_t{1} << 15, size_t{1} << 20}) {
    const auto backend =
        make_cuda_backend(cuda::emulator::make_emulated_device(cuda::Family::sm80, 1), limit);
    for (int content = 0; content < 2; ++content) {
      fill_normal(w, 5 + content);
      fill_normal(kernel, 7 + content);
      backend->constant(w.view().data, 8 * 24 * 4);
      backend->constant(kernel.view().data, 4 * 27 * 4);
      for (int turn = 0; turn < 3; ++turn) {
        Tensor out(DType::f32, {9, 8}), expected(DType::f32, {9, 8});
        ref->linear(x, w, nullptr, Epilogue::none, nullptr, expected);
        backend->linear(x, w, nullptr, Epilogue::none, nullptr, out);
        EXPECT_TRUE(close(out, expected, network(DType::f32), "linear"));
        Tensor conv(DType::f32, {1, 3, 4, 4}), conv_expected(DType::f32, {1, 3, 4, 4});
        ref->conv3d(image, kernel, nullptr, {}, nullptr, conv_expected);
        backend->conv3d(image, kernel, nullptr, {}, nullptr, conv);
        EXPECT_TRUE(close(conv, conv_expected, network(DType::f32), "conv3d"));
      }
      backend->forget(w.view().data);
      backend->forget(kernel.view().data);
    }
  }
}

}  // namespace
}  // namespace lacuna::test
