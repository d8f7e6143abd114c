// SPDX-License-Identifier: Apache-2.0
// What the contract tests of network ops do not reach: our own products at sizes with several
// tiles, products and convolutions in parts, tensors in device memory.
#include "lacuna/backend/cuda/network.h"

#include <gtest/gtest.h>

#include "lacuna/backend/cuda/copy.h"
#include "lacuna/backend/cuda/driver.h"
#include "lacuna/backend/cuda/emulator/emulated_device.h"
#include "lacuna/backend/cuda/gemm.h"
#include "lacuna/core/error.h"
#include "tests/support/backends.h"
#include "tests/support/compare.h"

namespace lacuna::test {
namespace {

enum class Place { emulated, emulated_own, gpu };  // own: without a library of products

class CudaNetwork : public testing::TestWithParam<Place> {
 protected:
  void SetUp() override {
    try {
      device_ = GetParam() == Place::gpu
                    ? cuda::make_driver_device()
                    : cuda::emulator::make_emulated_device(cuda::Family::sm80, 1,
                                                           GetParam() == Place::emulated);
      weights_.emplace(*device_);
    } catch (const Error& e) {
      GTEST_SKIP() << e.what();
    }
  }
  // A tensor's contiguous copy on the device.
  struct Remote {
    cuda::DeviceMemory memory;
    TensorView view;
    Remote(cuda::Device& device, const TensorView& x)
        : memory(device, static_cast<size_t>(storage_bytes(x.dtype, x.numel()))),
          view(cuda::packed(x, x.dtype, memory.as<void>(), Device::cuda)) {
      cuda::copy(device, x, view);
    }
  };
  Tensor fetch(const TensorView& x) {
    Tensor host(x.dtype, std::span(x.shape.data(), static_cast<size_t>(x.rank)));
    cuda::copy(*device_, x, host);
    return host;
  }

  std::unique_ptr<cuda::Device> device_;
  std::optional<cuda::Resident> weights_;
  std::unique_ptr<Backend> ref_ = make_ref_backend();
};

// One product with everything, on the device, and what it should be.
struct Product {
  Tensor x, w, out, base;
  std::vector<float> bias, gate;
  cuda::Gemm gemm{};

  Product(DType dtype, DType to, int64_t m, int64_t k, int64_t n, cuda::Activation activation)
      : x(random_tensor(dtype, {m, k}, 1)),
        w(random_tensor(dtype, {n, k}, 2)),
        out(random_tensor(to, {m, n}, 3)),
        base(random_tensor(to, {m, n}, 4, 3.0)),
        bias(random_floats(n, 5, 3.0)),
        gate(random_floats(n, 6)) {
    gemm.m = static_cast<int32_t>(m), gemm.n = static_cast<int32_t>(n);
    gemm.k = static_cast<int32_t>(k);
    gemm.x_stride = gemm.w_stride = k;
    gemm.out_stride = gemm.base_stride = n;
    gemm.bf16 = dtype == DType::bf16, gemm.out_bf16 = to == DType::bf16;
    gemm.activation = activation;
  }
  // base + gate * act(x w^T + bias)
  Tensor expected(Backend& ref) const {
    Tensor y(DType::f32, {gemm.m, gemm.n});
    const Epilogue act = gemm.activation == cuda::Activation::gelu_tanh ? Epilogue::gelu_tanh
                         : gemm.activation == cuda::Activation::silu    ? Epilogue::silu
                                                                        : Epilogue::none;
    ref.linear(x, w, bias.data(), act, nullptr, y);
    for (int64_t i = 0; i < y.numel(); ++i)
      put(y, i, get(base, i) + get(y, i) * double{gate[static_cast<size_t>(i % gemm.n)]});
    Tensor rounded(out.view().dtype, {gemm.m, gemm.n});
    copy_elements(y, rounded);
    return rounded;
  }
};

TEST_P(CudaNetwork, ProductsOfOurOwnAndInParts) {
  const int64_t shapes[][3] = {{1, 1, 1}, {130, 40, 260}, {257, 72, 129}, {300, 33, 20}};
  for (const auto& [m, k, n] : shapes)
    for (DType dtype : {DType::f32, DType::bf16})
      for (cuda::Activation act :
           {cuda::Activation::none, cuda::Activation::gelu_tanh, cuda::Activation::silu}) {
        const DType to =
            dtype == DType::bf16 && act != cuda::Activation::none ? DType::bf16 : DType::f32;
        Product p(dtype, to, m, k, n, act);
        const Remote x(*device_, p.x), w(*device_, p.w), base(*device_, p.base);
        const cuda::DeviceMemory bias(*device_, p.bias), gate(*device_, p.gate);
        p.gemm.x = x.view.data, p.gemm.w = w.view.data, p.gemm.base = base.view.data;
        p.gemm.bias = bias.as<void>(), p.gemm.gate = gate.as<float>();
        const Tensor expected = p.expected(*ref_);
        const std::string context = fmt::format("m {} k {} n {} {} act {}", m, k, n,
                                                dtype_name(dtype), static_cast<int>(act));
        const Remote own(*device_, p.out), parts(*device_, p.out);
        p.gemm.out = own.view.data;
        cuda::own_gemm(*device_, p.gemm);
        EXPECT_TRUE(close(fetch(own.view), expected, network(to), context + " own"));
        p.gemm.out = parts.view.data;
        cuda::gemm(*device_, p.gemm, 128 * 4 * (n + 3));  // 128 rows at a time
        EXPECT_TRUE(close(fetch(parts.view), expected, network(to), context + " in parts"));
      }
}

TEST_P(CudaNetwork, ConvolutionsInParts) {
  const ConvParams conv{.stride_w = 2, .pad_top = 1, .pad_left = 1, .pad_right = 1, .relu = true};
  for (int64_t c_in : {8, 3})
    for (DType dtype : {DType::f32, DType::bf16}) {
      const Tensor x = random_tensor(dtype, {5, 7, 40, c_in}, 1);
      const Tensor w = random_tensor(dtype, {4, c_in, 3, 2, 3}, 2);
      const Tensor residual = random_tensor(dtype, {3, 7, 20, 4}, 3);
      const TensorView added = residual;
      const std::vector<float> bias = random_floats(4, 4);
      Tensor out(dtype, {3, 7, 20, 4}), expected(dtype, {3, 7, 20, 4});
      ref_->conv3d(x, w, bias.data(), conv, &added, expected);
      // 420 positions, 128 at a time.
      cuda::conv3d(*device_, *weights_, x, w, bias.data(), conv, &added, out, 1);
      EXPECT_TRUE(close(out, expected, network(dtype), fmt::format("c_in {}", c_in)));
    }
}

// Every op with all tensors on the device, in a chain; misaligned rows on the way.
TEST_P(CudaNetwork, TensorsStayOnTheDevice) {
  const int64_t m = 21, k = 24, n = 20;
  const Tensor x = random_tensor(DType::bf16, {m, k}, 1), w = random_tensor(DType::bf16, {n, k}, 2);
  const std::vector<float> p = random_floats(4 * n, 3);
  Tensor a(DType::f32, {m, n}), b(DType::bf16, {m, n}), c(DType::bf16, {m, n});
  ref_->linear(x, w, p.data(), Epilogue::none, nullptr, a);
  ref_->linear(x, w, p.data(), Epilogue::residual, p.data() + n, a);
  ref_->layer_norm(a, nullptr, nullptr, p.data(), p.data() + n, 1e-6f, b);
  ref_->rms_norm(b, p.data() + 2 * n, 1e-6f, NormSpan::row, nullptr, 1, b);
  ref_->gated_product(Epilogue::gelu_tanh, b, b, c);
  ref_->channel_norm(c, p.data() + 3 * n, true, c);
  Tensor g(DType::bf16, {1, m, n});
  ref_->group_norm(make_view(c.view().data, DType::bf16, {1, m, n}), 5, p.data(), p.data() + n,
                   1e-6f, false, g);

  const Remote rx(*device_, x), rw(*device_, w), rb(*device_, b), rc(*device_, b);
  const Remote wide(*device_, Tensor::zeros(DType::f32, {m, n + 3}));
  TensorView ra = wide.view;
  ra.shape[1] = n;
  cuda::Device& d = *device_;
  cuda::linear(d, *weights_, rx.view, rw.view, p.data(), Epilogue::none, nullptr, ra);
  cuda::linear(d, *weights_, rx.view, rw.view, p.data(), Epilogue::residual, p.data() + n, ra);
  cuda::layer_norm(d, ra, nullptr, nullptr, p.data(), p.data() + n, 1e-6f, rb.view);
  cuda::rms_norm(d, rb.view, p.data() + 2 * n, 1e-6f, NormSpan::row, nullptr, 1, rb.view);
  cuda::gated_product(d, Epilogue::gelu_tanh, rb.view, rb.view, rc.view);
  cuda::channel_norm(d, rc.view, p.data() + 3 * n, true, rc.view);
  const Remote rg(*device_, Tensor::zeros(DType::bf16, {1, m, n}));
  TensorView samples = rg.view;
  samples.data = rc.view.data;
  cuda::group_norm(d, samples, 5, p.data(), p.data() + n, 1e-6f, false, rg.view);
  EXPECT_TRUE(close(fetch(ra), a, network(DType::f32), "linear"));
  // Three roundings to bf16, one after the other.
  Limits limits = network(DType::bf16);
  limits.rel_l2 *= 2.0, limits.max_abs *= 2.0;
  EXPECT_TRUE(close(fetch(rc.view), c, limits, "chain"));
  limits.rel_l2 *= 2.0, limits.max_abs *= 2.0;  // one more, of what was off already
  EXPECT_TRUE(close(fetch(rg.view), g, limits, "group_norm behind the chain"));
  for (int64_t i = 0; i < m; ++i)
    EXPECT_EQ(get(fetch(wide.view), i * (n + 3) + n), 0.0) << "a row's padding was written";
}

TEST_P(CudaNetwork, AddsAnyStrides) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    const Tensor a = random_tensor(dtype, {3, 5, 8}, 1), b = random_tensor(dtype, {5, 9}, 2);
    const Tensor out = random_tensor(dtype, {3, 5, 8}, 3);
    TensorView repeated = b;  // the same [5, 8] for every first index
    repeated.rank = 3;
    repeated.shape = {3, 5, 8}, repeated.stride = {0, 9, 1};
    std::vector<double> expected = values(a);
    const std::vector<double> more = values(repeated);
    for (size_t i = 0; i < expected.size(); ++i) expected[i] += more[i];
    cuda::add(*device_, a, repeated, out);
    const int64_t shape[] = {3, 5, 8};
    EXPECT_TRUE(close(values(out), expected, rounding(dtype), shape, "add"));
    cuda::add(*device_, a, repeated, a);
    EXPECT_EQ(values(a), values(out)) << "in place";
  }
}

TEST_P(CudaNetwork, RowsTooLongForABlockAreRefused) {
  const Tensor x = Tensor::zeros(DType::f32, {1, 30000}), out(DType::f32, {1, 30000});
  EXPECT_THROW(cuda::layer_norm(*device_, x, nullptr, nullptr, nullptr, nullptr, 1e-6f, out),
               Error);
}

// As many rows as make chunks grow: threads that add up several runs, in chunks of unequal size;
// device memory that quads do not divide.
TEST_P(CudaNetwork, GroupNormOfLongMaps) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (int64_t shift : {0, 1}) {
      const int64_t m = 9000, c = 12;
      const Tensor x = random_tensor(dtype, {1, m, c}, 1, 1.0, 30.0);
      const Tensor out(dtype, {1, m, c}), expected(dtype, {1, m, c});
      const std::vector<float> p = random_floats(2 * c, 2);
      ref_->group_norm(x, 3, p.data(), p.data() + c, 1e-6f, true, expected);
      const Remote wide(*device_, Tensor::zeros(dtype, {m * c + 1}));
      TensorView in_place = wide.view;
      in_place.data = static_cast<char*>(wide.view.data) + storage_bytes(dtype, shift);
      in_place = cuda::packed(x, dtype, in_place.data, Device::cuda);
      cuda::copy(*device_, x, in_place);
      cuda::group_norm(*device_, in_place, 3, p.data(), p.data() + c, 1e-6f, true, in_place, 1);
      EXPECT_TRUE(close(fetch(in_place), expected, network(dtype), fmt::format("shift {}", shift)));
    }
}

TEST_P(CudaNetwork, GroupNormRefusesRowsTooLongForABlock) {
  const Tensor x = Tensor::zeros(DType::f32, {1, 1, 7000}), out(DType::f32, {1, 1, 7000});
  const std::vector<float> p(7000, 1.0f);
  EXPECT_THROW(cuda::group_norm(*device_, x, 1, p.data(), p.data(), 1e-6f, false, out), Error);
}

INSTANTIATE_TEST_SUITE_P(Devices, CudaNetwork,
                         testing::Values(Place::emulated, Place::emulated_own, Place::gpu),
                         [](const testing::TestParamInfo<Place>& info) {
                           return info.param == Place::gpu        ? "gpu"
                                  : info.param == Place::emulated ? "emulated"
                                                                  : "emulated_own";
                         });

}  // namespace
}  // namespace lacuna::test
