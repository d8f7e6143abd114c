// SPDX-License-Identifier: Apache-2.0
// Ops on tensors in device memory: the same bits as with host tensors, which the contract tests
// compare with the reference; and the operands and launches they stand on.
#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

#include "lacuna/backend/cuda/cuda_backend.h"
#include "lacuna/backend/cuda/driver.h"
#include "lacuna/backend/cuda/emulator/emulated_device.h"
#include "lacuna/backend/cuda/operand.h"
#include "lacuna/backend/cuda/select_args.h"
#include "lacuna/core/error.h"
#include "tests/support/attend_case.h"
#include "tests/support/poisoned.h"

namespace lacuna::test {
namespace {

// A host tensor's memory from its first to its last element, on the device, seen with the same
// strides.
class OnDevice {
 public:
  OnDevice(cuda::Device& device, const TensorView& host)
      : device_(device), host_(host), bytes_(span(host)), memory_(device, bytes_) {
    device.upload(memory_.as<void>(), host.data, bytes_);
    view_ = host;
    view_.data = memory_.as<void>();
    view_.device = lacuna::Device::cuda;
  }
  const TensorView& view() const { return view_; }
  template <typename T>
  T* data() const {
    return memory_.as<T>();
  }
  void bring_back() const { device_.download(host_.data, memory_.as<void>(), bytes_); }

 private:
  static size_t span(const TensorView& x) {
    int64_t last = 0;
    for (int i = 0; i < x.rank; ++i) last += (x.shape[i] - 1) * x.stride[i];
    return static_cast<size_t>(storage_bytes(x.dtype, last + 1));
  }
  cuda::Device& device_;
  TensorView host_, view_;
  size_t bytes_;
  cuda::DeviceMemory memory_;
};

class CudaInPlace : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    try {
      auto device = GetParam() ? cuda::make_driver_device()
                               : cuda::emulator::make_emulated_device(cuda::Family::sm90, 1);
      device_ = device.get();
      backend_ = make_cuda_backend(std::move(device));
    } catch (const Error& e) {
      GTEST_SKIP() << e.what();
    }
  }
  cuda::Device* device_ = nullptr;
  std::unique_ptr<Backend> backend_;
};

Tensor nan_tensor(DType dtype, std::initializer_list<int64_t> shape) {
  Tensor t(dtype, shape);
  std::memset(t.view().data, 0xFF, static_cast<size_t>(storage_bytes(dtype, t.numel())));
  return t;
}

bool same_bits(const Tensor& a, const Tensor& b) {
  return std::memcmp(a.view().data, b.view().data,
                     static_cast<size_t>(storage_bytes(a.view().dtype, a.numel()))) == 0;
}

TEST_P(CudaInPlace, ScoresAndMasks) {
  const int64_t len = 205;
  const BlockLayout layout = BlockLayout::uniform(len, 32);
  const std::vector<int32_t> heads{2, 0};
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Poisoned q(dtype, 3, len, 64, Storage::tokens_first), k(dtype, 3, len, 64, Storage::odd);
    fill_normal(q.view(), 1, 2.0);
    fill_normal(k.view(), 2);
    const Tensor lse = random_tensor(DType::f32, {3, len}, 3, 1.0, 5.0);
    const OnDevice dq(*device_, q.view()), dk(*device_, k.view()), dlse(*device_, lse);
    const Tensor host = nan_tensor(DType::f32, {2, 7, 7}), own = nan_tensor(DType::f32, {2, 7, 7});
    const OnDevice out(*device_, own);
    backend_->antidiagonal_scores(q.view(), k.view(), heads, layout, layout, 0.125f, 8, false,
                                  host);
    backend_->antidiagonal_scores(dq.view(), dk.view(), heads, layout, layout, 0.125f, 8, false,
                                  out.view());
    BlockMask from_host(2, 7, 7), from_device(2, 7, 7);
    backend_->select_top_p(host, std::vector<float>{0.5f, 0.9f}, from_host);
    backend_->select_top_p(out.view(), std::vector<float>{0.5f, 0.9f}, from_device);
    EXPECT_EQ(from_host, from_device);
    out.bring_back();
    EXPECT_TRUE(same_bits(host, own));
    backend_->block_mass(q.view(), k.view(), lse.as<float>(), heads, layout, layout, 0.125f, host);
    backend_->block_mass(dq.view(), dk.view(), dlse.data<float>(), heads, layout, layout, 0.125f,
                         out.view());
    out.bring_back();
    EXPECT_TRUE(same_bits(host, own));
  }
}

TEST_P(CudaInPlace, MeansLabelsAndMoves) {
  const int64_t len = 150, d = 40;
  const BlockLayout layout = BlockLayout::uniform(len, 64);
  const std::vector<int32_t> heads{1};
  const Poisoned x(DType::bf16, 2, len, d, Storage::padded);
  fill_normal(x.view(), 4);
  const OnDevice dx(*device_, x.view());
  const Tensor mean = nan_tensor(DType::f32, {1, 3, d}),
               own_mean = nan_tensor(DType::f32, {1, 3, d});
  const OnDevice dmean(*device_, own_mean);
  backend_->block_mean(x.view(), heads, layout, mean);
  backend_->block_mean(dx.view(), heads, layout, dmean.view());
  dmean.bring_back();
  EXPECT_TRUE(same_bits(mean, own_mean));

  const Tensor points = random_tensor(DType::bf16, {1, 20, d}, 5);
  const Tensor label(DType::i32, {1, len}), own_label(DType::i32, {1, len});
  const OnDevice dpoints(*device_, points), dlabel(*device_, own_label);
  backend_->nearest_centroids(x.view(), heads, points, label);
  backend_->nearest_centroids(dx.view(), heads, dpoints.view(), dlabel.view());
  dlabel.bring_back();
  EXPECT_TRUE(same_bits(label, own_label));

  std::vector<int32_t> order(static_cast<size_t>(len));
  std::iota(order.rbegin(), order.rend(), 0);
  const Tensor moved = nan_tensor(DType::bf16, {2, len, d}),
               back = nan_tensor(DType::bf16, {2, len, d});
  const OnDevice dmoved(*device_, moved), dback(*device_, back);
  backend_->gather_tokens(dx.view(), order.data(), 0, dmoved.view());
  backend_->scatter_tokens(dmoved.view(), order.data(), 0, dback.view());
  dmoved.bring_back();
  dback.bring_back();
  EXPECT_EQ(values(back), values(x.view()));
  EXPECT_EQ(get(moved, 0), get(x.view(), (len - 1) * x.view().stride[1]));
  // A gather may leave tokens out and repeat others; a scatter may not.
  const std::vector<int32_t> some{9, 2, 9};
  const Tensor three = nan_tensor(DType::bf16, {2, 3, d});
  backend_->gather_tokens(dx.view(), some.data(), 0, three);
  for (int64_t h = 0; h < 2; ++h)
    for (int64_t p = 0; p < 3; ++p)
      EXPECT_EQ(get(three, (h * 3 + p) * d + 5),
                get(x.view(), h * x.view().stride[0] + some[p] * x.view().stride[1] + 5));
  EXPECT_THROW(backend_->scatter_tokens(dx.view(), some.data(), 0, three), Error);
}

TEST_P(CudaInPlace, MergeInPlace) {
  const Tensor a = random_tensor(DType::f32, {2, 30, 64}, 1),
               b = random_tensor(DType::f32, {2, 30, 64}, 2);
  const Tensor lse_a = random_tensor(DType::f32, {2, 30}, 3),
               lse_b = random_tensor(DType::f32, {2, 30}, 4);
  const Tensor own = random_tensor(DType::f32, {2, 30, 64}, 1),
               own_lse = random_tensor(DType::f32, {2, 30}, 3);
  const OnDevice da(*device_, own), db(*device_, b), dlse_a(*device_, own_lse),
      dlse_b(*device_, lse_b);
  backend_->merge_lse(a, lse_a.as<float>(), b, lse_b.as<float>());
  backend_->merge_lse(da.view(), dlse_a.data<float>(), db.view(), dlse_b.data<float>());
  da.bring_back();
  dlse_a.bring_back();
  EXPECT_TRUE(same_bits(a, own));
  EXPECT_TRUE(same_bits(lse_a, own_lse));
}

// Aligned bf16 goes to tensor cores, odd strides and f32 to the generic kernel.
TEST_P(CudaInPlace, Attention) {
  for (const DType dtype : {DType::bf16, DType::f32})
    for (const Storage storage : {Storage::tokens_first, Storage::odd}) {
      const AttendCase c({.dtype = dtype,
                          .heads = 3,
                          .head_ids = {2, 0},
                          .q_len = 100,
                          .k_len = 140,
                          .block_q = 64,
                          .block_k = 64,
                          .storage = storage,
                          .density = 0.6,
                          .bias = Bias::per_key});
      const AttendResult host = c.run(*backend_);
      const OnDevice q(*device_, c.q()), k(*device_, c.k()), v(*device_, c.v());
      const AttendResult own = c.run_with([&](AttendParams p) {
        TensorView out = make_view(p.out, dtype, {3, 100, 64});
        out.stride = {p.out_head_stride, p.out_token_stride, 1};
        const OnDevice dout(*device_, out), dlse(*device_, make_view(p.lse, DType::f32, {3, 100}));
        p.q = q.data<void>(), p.k = k.data<void>(), p.v = v.data<void>();
        p.out = dout.data<void>(), p.lse = dlse.data<float>();
        backend_->attend(p);
        dout.bring_back();
        dlse.bring_back();
      });
      // Host tensors are packed, and then aligned.
      const bool same_kernel = dtype == DType::f32 || storage == Storage::tokens_first;
      const double limit = same_kernel ? 0.0 : 2e-2;
      const int64_t shape[] = {3, 100, 64};
      EXPECT_TRUE(near_abs(own.out, host.out, limit, shape, c.spec().describe()));
      EXPECT_TRUE(near_abs(own.lse, host.lse, same_kernel ? 0.0 : 1e-4, "lse"));
      EXPECT_EQ(own.pv_pairs, host.pv_pairs);
      EXPECT_TRUE(own.intact);
    }
}

// What a call gives beside its output, in device memory and on the host.
TEST_P(CudaInPlace, WhatAttentionGivesBesideItsOutput) {
  for (const SkipKind kind : {SkipKind::none, SkipKind::running_max}) {
    AttendCase c({.dtype = DType::bf16,
                  .heads = 3,
                  .head_ids = {2, 0},
                  .q_len = 100,
                  .k_len = 140,
                  .block_q = 64,
                  .block_k = 64,
                  .density = 0.8,
                  .visit = VisitOrder::coarse_to_fine,
                  .pattern = Pattern::structured,
                  .sharpness = 3.0});
    if (kind != SkipKind::none) c.set_skip(kind, 0.3f);
    const AttendResult host = c.run(*backend_);
    const AttendResult own = c.run_with([&](AttendParams p) {
      const OnDevice mass(*device_, make_view(p.block_mass, DType::f32, {3, 2, 3}));
      const OnDevice bits(*device_, make_view(p.skip_bits, DType::i64, {3, 2, 1}));
      const OnDevice pairs(*device_, make_view(p.pv_pairs, DType::i64, {2}));
      p.block_mass = mass.data<float>(), p.skip_bits = bits.data<uint64_t>();
      p.pv_pairs = pairs.data<int64_t>();
      backend_->attend(p);
      mass.bring_back();
      bits.bring_back();
      pairs.bring_back();
    });
    EXPECT_TRUE(near_abs(own.block_mass, host.block_mass, 0.0, "block_mass"));
    EXPECT_EQ(own.skip_bits, host.skip_bits);
    EXPECT_EQ(own.pv_pairs, host.pv_pairs);
  }
}

TEST_P(CudaInPlace, OperandsCopyWhatTheViewCovers) {
  const Poisoned x(DType::f32, 3, 5, 4, Storage::odd);
  fill_normal(x.view(), 1);
  const std::vector<double> before = values(x.view());
  const std::vector<int32_t> only{2};
  {
    cuda::InOut all(*device_, x.view()), one(*device_, x.view(), only);
    EXPECT_EQ(all.stride(0), 20);
    EXPECT_EQ(all.stride(1), 4);
    std::vector<float> packed(60);
    device_->download(packed.data(), all.data(), sizeof(float) * 60);
    EXPECT_EQ(std::vector<double>(packed.begin(), packed.end()), before);
    for (float& p : packed) p += 1.0f;
    device_->upload(one.data(), packed.data(), sizeof(float) * 60);
    one.store();
  }
  const std::vector<double> after = values(x.view());
  for (size_t i = 0; i < 60; ++i)
    EXPECT_EQ(static_cast<float>(after[i]), static_cast<float>(before[i]) + (i < 40 ? 0.0f : 1.0f));
  EXPECT_TRUE(x.intact());
  // A repeated row is copied once.
  TensorView row = make_view(x.view().data, DType::f32, {7, 4});
  row.stride = {0, 1};
  const cuda::Input repeated(*device_, row);
  EXPECT_EQ(repeated.stride(0), 0);
  EXPECT_EQ(repeated.stride(1), 1);
  // Device memory is used as it lies.
  const OnDevice dx(*device_, x.view());
  const cuda::Input in_place(*device_, dx.view());
  EXPECT_TRUE(in_place.resident());
  EXPECT_EQ(in_place.data(), dx.view().data);
  EXPECT_EQ(in_place.stride(0), x.view().stride[0]);
  const cuda::Vector<float> vector(*device_, dx.data<float>() + 1, 3);
  EXPECT_EQ(vector.data(), dx.data<float>() + 1);
}

INSTANTIATE_TEST_SUITE_P(Places, CudaInPlace, testing::Values(false, true),
                         [](const auto& info) { return info.param ? "gpu" : "emulated"; });

// Block means of `tokens` tokens in one block, of memory that holds 64 of them.
std::string mean_fault(bool host_memory, int32_t tokens, int64_t out_stride) {
  const auto device = cuda::emulator::make_emulated_device(cuda::Family::sm80, 1);
  const std::vector<float> x(64 * 8, 1.0f);
  const std::vector<int32_t> head{0};
  const cuda::DeviceMemory dx(*device, x), heads(*device, head), out(*device, 8 * sizeof(float));
  cuda::BlockMeanArgs args{};
  args.x = host_memory ? static_cast<const void*>(x.data()) : dx.as<void>();
  args.x_token_stride = 8;
  args.head_ids = heads.as<int32_t>();
  args.blocks = {nullptr, tokens, 1, tokens};
  args.d = 8;
  args.out = out.as<float>();
  args.out_channel_stride = out_stride;
  try {
    device->launch("select", "block_mean_f32", {.threads = cuda::kBlockMeanThreads}, args);
  } catch (const Error& e) {
    return e.what();
  }
  return {};
}

TEST(EmulatedDevice, FindsMemoryThatIsNotTheDevices) {
  EXPECT_EQ(mean_fault(false, 64, 1), "");
  EXPECT_NE(mean_fault(true, 64, 1).find("not device memory"), std::string::npos);
  EXPECT_NE(mean_fault(false, 65, 1).find("not device memory"), std::string::npos);
  EXPECT_NE(mean_fault(false, 64, 2).find("not device memory"), std::string::npos);
}

TEST(EmulatedDevice, FindsSharedMemoryThatIsNotTheBlocks) {
  const auto device = cuda::emulator::make_emulated_device(cuda::Family::sm80, 1);
  const cuda::DeviceMemory scores(*device, std::vector<float>(40, 1.0f));
  const cuda::DeviceMemory top_k(*device, std::vector<int32_t>{3});
  const cuda::DeviceMemory words(*device, 8), bad(*device, 4);
  cuda::SelectArgs args{};
  args.scores = scores.as<float>();
  args.k_stride = 1;
  args.n = 40, args.num_words = 2, args.staged = 1;
  args.top_k = top_k.as<int32_t>();
  args.words = words.as<uint32_t>();
  args.bad = bad.as<float>();
  const auto launch = [&](int scores_in_shared) {
    device->launch("select", "choose_scores",
                   {.threads = cuda::kSelectThreads,
                    .shared_bytes = cuda::kSelectCells * 8 + scores_in_shared * 4},
                   args);
  };
  EXPECT_NO_THROW(launch(40));
  EXPECT_THROW(launch(39), Error);
}

}  // namespace
}  // namespace lacuna::test
