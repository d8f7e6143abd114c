// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "lacuna/backend/cuda/cuda_backend.h"
#include "lacuna/backend/cuda/emulator/emulated_device.h"
#include "lacuna/backend/cuda/resident.h"
#include "lacuna/backend/ref/ref_backend.h"
#include "lacuna/core/error.h"
#include "tests/support/compare.h"

namespace lacuna::test {
namespace {

constexpr size_t kBytes = 16 * 16 * 4;  // of a weight here

class CudaWeights : public testing::Test {
 protected:
  CudaWeights() {
    for (uint64_t i = 0; i < 5; ++i) {
      weights_.push_back(random_tensor(DType::f32, {16, 16}, i + 1));
      resident_.constant(weights_.back().view().data, kBytes);
    }
  }
  // Uses weight i; false if what is on the device is not the weight.
  bool use(size_t i) {
    const cuda::Resident::Weight weight = resident_.get(weights_[i]);
    std::vector<float> values(16 * 16);
    device_->download(values.data(), weight.data(), kBytes);
    return std::equal(values.begin(), values.end(), weights_[i].as<float>());
  }
  int64_t copied_by(const std::vector<size_t>& uses) {
    const int64_t before = resident_.copied();
    for (size_t i : uses) EXPECT_TRUE(use(i));
    return resident_.copied() - before;
  }

  std::unique_ptr<cuda::Device> device_ =
      cuda::emulator::make_emulated_device(cuda::Family::sm80, 1);
  std::vector<Tensor> weights_;
  cuda::Resident resident_{*device_, 3 * kBytes + 100};
};

TEST_F(CudaWeights, KeepsWhatFits) {
  EXPECT_EQ(copied_by({0, 1, 2, 0, 1, 2}), 3);
  EXPECT_EQ(resident_.bytes(), 3 * kBytes);
  EXPECT_EQ(resident_.streamed(), 0);
}

TEST_F(CudaWeights, LeastRecentlyUsedLeavesFirst) {
  copied_by({0, 1, 2, 0, 3});  // 3 pushes out 1
  EXPECT_EQ(resident_.bytes(), 3 * kBytes);
  EXPECT_EQ(copied_by({0, 2, 3}), 0);
  EXPECT_EQ(resident_.streamed(), 0);
  EXPECT_TRUE(use(1));  // all others were used since
  EXPECT_EQ(resident_.streamed(), 1);
  EXPECT_EQ(copied_by({0, 2, 3}), 0);
}

TEST_F(CudaWeights, ALoopOverMoreThanFitsStreamsOnlyTheRest) {
  copied_by({0, 1, 2, 3, 4});
  EXPECT_EQ(resident_.streamed(), 0);
  for (int round = 0; round < 3; ++round) {
    EXPECT_EQ(copied_by({0, 1, 2, 3, 4}), 0);
    EXPECT_EQ(resident_.streamed(), 2 * (round + 1));
  }
  // The others have gone cold: what streamed comes to stay.
  copied_by({0, 1});
  EXPECT_EQ(copied_by({0}), 1);
}

TEST_F(CudaWeights, TwoStreamedWeightsLiveAtOneTime) {
  cuda::Resident none(*device_, 0);
  for (const Tensor& w : weights_) none.constant(w.view().data, kBytes);
  for (size_t i = 0; i + 1 < weights_.size(); ++i) {
    const auto a = none.get(weights_[i]), b = none.get(weights_[i + 1]);
    for (const auto& [weight, tensor] : {std::pair(&a, &weights_[i]), {&b, &weights_[i + 1]}}) {
      std::vector<float> values(16 * 16);
      device_->download(values.data(), weight->data(), kBytes);
      EXPECT_TRUE(std::equal(values.begin(), values.end(), tensor->as<float>()));
    }
  }
  EXPECT_EQ(none.streamed(), 8);
  EXPECT_EQ(none.bytes(), 0u);
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
  const auto streamed_budget = std::make_unique<cuda::Resident>(*device_, 0);
  streamed_budget->constant(weights_[2].view().data, kBytes);
  const auto weight = streamed_budget->get(weights_[2]);
  streamed_budget->forget(weights_[2].view().data);
  fill_normal(weights_[2], 78);
  std::vector<float> values(16 * 16);
  device_->download(values.data(), weight.data(), kBytes);
  EXPECT_TRUE(std::equal(values.begin(), values.end(), before.as<float>()));
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

// Weights of one type that are computed with in another.
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

// Through the backend: both forms of a weight, all of it streaming.
TEST(CudaBackend, ConstantWeightsGiveTheSameNumbers) {
  const auto ref = make_ref_backend();
  const Tensor x = random_tensor(DType::f32, {9, 24}, 1);
  const Tensor image = random_tensor(DType::f32, {1, 5, 6, 3}, 2);
  Tensor w = random_tensor(DType::f32, {8, 24}, 3),
         kernel = random_tensor(DType::f32, {4, 3, 1, 3, 3}, 4);
  for (size_t budget : {size_t{0}, size_t{1} << 20}) {
    const auto backend =
        make_cuda_backend(cuda::emulator::make_emulated_device(cuda::Family::sm80, 1), budget);
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
