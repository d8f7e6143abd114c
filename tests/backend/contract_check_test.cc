// SPDX-License-Identifier: Apache-2.0
// Calls that make no sense fail with the same text on every backend.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <limits>
#include <utility>

#include "tests/support/backends.h"
#include "tests/support/error_of.h"
#include "tests/support/random.h"

namespace lacuna::test {
namespace {

using Shape = std::initializer_list<int64_t>;

// Views for calls that are refused before anything is read.
TensorView of(DType dtype, Shape shape) {
  static const Tensor memory = Tensor::zeros(DType::f32, {4096});
  return make_view(memory.view().data, dtype, shape);
}
TensorView f32(Shape shape) {
  return of(DType::f32, shape);
}
TensorView bf16(Shape shape) {
  return of(DType::bf16, shape);
}
// With strided channels.
TensorView turned(Shape shape) {
  TensorView x = f32(shape);
  std::swap(x.stride[x.rank - 1], x.stride[x.rank - 2]);
  return x;
}
TensorView nowhere(Shape shape) {
  TensorView x = f32(shape);
  x.data = nullptr;
  return x;
}

class CheckContract : public BackendTest {
 protected:
  // The reference says `who: given, expected`, and this backend the same.
  void refused(const std::string& who, const std::function<void(Backend&)>& call) {
    const std::string text = error_of([&] { call(*ref_); });
    EXPECT_THAT(text, testing::MatchesRegex(who + ": .+, expected .+"));
    EXPECT_EQ(error_of([&] { call(*backend_); }), text);
  }
  const std::vector<float> values_ = random_floats(64, 1);
};

TEST_P(CheckContract, Linear) {
  const auto linear = [&](TensorView x, TensorView w, TensorView out, Epilogue e = Epilogue::none) {
    refused("linear", [=](Backend& b) { b.linear(x, w, nullptr, e, nullptr, out); });
  };
  linear(f32({2, 3}), f32({4, 5}), f32({2, 4}));
  linear(f32({2, 3}), bf16({4, 3}), f32({2, 4}));
  linear(f32({2, 3}), f32({4, 3}), f32({4, 2}));
  linear(f32({2, 0}), f32({4, 0}), f32({2, 4}));
  linear(f32({1, 2, 3}), f32({4, 3}), f32({2, 4}));
  linear(turned({2, 3}), f32({4, 3}), f32({2, 4}));
  linear(f32({2, 3}), nowhere({4, 3}), f32({2, 4}));
  linear(of(DType::i32, {2, 3}), f32({4, 3}), f32({2, 4}));
  linear(f32({2, 3}), f32({4, 3}), bf16({2, 4}), Epilogue::residual);
}

TEST_P(CheckContract, Norms) {
  const auto layer = [&](TensorView x, TensorView out) {
    refused("layer_norm",
            [=](Backend& b) { b.layer_norm(x, nullptr, nullptr, nullptr, nullptr, 1e-6f, out); });
  };
  layer(bf16({2, 8}), bf16({2, 8}));
  layer(f32({2, 8}), f32({2, 9}));
  layer(f32({2, 8}), turned({2, 8}));
  const auto channel = [&](TensorView x, const float* gamma, TensorView out) {
    refused("channel_norm", [=](Backend& b) { b.channel_norm(x, gamma, false, out); });
  };
  channel(f32({2, 8}), values_.data(), bf16({2, 8}));
  channel(f32({2, 8}), values_.data(), f32({8, 2}));
  channel(turned({2, 8}), values_.data(), f32({2, 8}));
  channel(f32({2, 8}), nullptr, f32({2, 8}));
  const auto rms = [&](TensorView x, const float* weight, const RopeTables& rope, int32_t heads) {
    refused("rms_norm",
            [=](Backend& b) { b.rms_norm(x, weight, 1e-6f, NormSpan::row, &rope, heads, x); });
  };
  const RopeTables rope{.frames = 2, .height = 3, .width = 1, .pairs_frames = 2};
  rms(f32({6, 8}), nullptr, rope, 2);
  rms(f32({6, 8}), values_.data(), rope, 0);
  rms(f32({6, 8}), values_.data(), rope, 3);
  rms(f32({6, 8}), values_.data(), rope, 4);
  rms(f32({7, 8}), values_.data(), rope, 2);
  rms(of(DType::f16, {6, 8}), values_.data(), rope, 2);
  // Heads that have norms of their own, and angles that add up.
  const auto heads = [&](TensorView x, const float* weight, const RopeTables* tables, int32_t n) {
    refused("rms_norm",
            [=](Backend& b) { b.rms_norm(x, weight, 1e-6f, NormSpan::head, tables, n, x); });
  };
  heads(f32({6, 8}), values_.data(), nullptr, 0);
  heads(f32({6, 8}), values_.data(), nullptr, 3);
  heads(f32({6, 8}), nullptr, nullptr, 2);
  for (const auto& [a, b, c] : {std::array{2, 0, 0}, {2, 2, 1}, {2, 1, 2}, {1, 1, 1}}) {
    const RopeTables summed{.frames = 2,
                            .height = 3,
                            .width = 1,
                            .pairs_frames = a,
                            .pairs_height = b,
                            .pairs_width = c,
                            .summed = true};
    heads(f32({6, 8}), values_.data(), &summed, 2);
  }
  // All else fits, so that no other check speaks.
  rms(f32({6, 8}), values_.data(), {.frames = 2, .height = 3, .width = 1, .pairs_frames = 1}, 3);
  rms(f32({6, 8}), values_.data(),
      {.frames = 2, .height = 3, .width = 1, .pairs_frames = 3, .pairs_height = -1}, 2);
  rms(f32({6, 8}), values_.data(), {.frames = -2, .height = -3, .width = 1, .pairs_frames = 2}, 2);
  for (const TensorView& out : {f32({5, 8}), f32({6, 9})})
    refused("rms_norm", [&](Backend& b) {
      b.rms_norm(f32({6, 8}), values_.data(), 1e-6f, NormSpan::row, nullptr, 2, out);
    });
}

TEST_P(CheckContract, GroupNorm) {
  const auto group = [&](TensorView x, int32_t groups, TensorView out, bool weight = true,
                         bool bias = true) {
    refused("group_norm", [=, this](Backend& b) {
      b.group_norm(x, groups, weight ? values_.data() : nullptr, bias ? values_.data() : nullptr,
                   1e-6f, false, out);
    });
  };
  const TensorView x = f32({2, 3, 8});
  group(f32({6, 8}), 2, f32({6, 8}));
  group(x, 2, f32({3, 2, 8}));
  group(x, 2, bf16({2, 3, 8}));
  group(turned({2, 3, 8}), 2, x);
  group(of(DType::f16, {2, 3, 8}), 2, of(DType::f16, {2, 3, 8}));
  group(nowhere({2, 3, 8}), 2, x);
  group(x, 0, x);
  group(x, -2, x);
  group(x, 3, x);
  group(x, 2, x, false);
  group(x, 2, x, true, false);
}

TEST_P(CheckContract, Elementwise) {
  for (Epilogue activation : {Epilogue::none, Epilogue::residual})
    refused("gated_product", [&](Backend& b) {
      b.gated_product(activation, f32({2, 8}), f32({2, 8}), f32({2, 8}));
    });

  const auto both = [&](TensorView a, TensorView b, TensorView out) {
    refused("gated_product",
            [&](Backend& to) { to.gated_product(Epilogue::gelu_tanh, a, b, out); });
    refused("add", [&](Backend& to) { to.add(a, b, out); });
  };
  both(f32({2, 8}), f32({2, 9}), f32({2, 8}));
  both(f32({2, 8}), f32({2, 8}), bf16({2, 8}));
  both(of(DType::i32, {4}), of(DType::i32, {4}), of(DType::i32, {4}));
}

TEST_P(CheckContract, Conv3d) {
  const TensorView x = f32({3, 4, 4, 2}), w = f32({5, 2, 3, 3, 3}), out = f32({1, 2, 2, 5});
  const auto conv = [&](TensorView a, TensorView b, TensorView c, ConvParams p = {},
                        const TensorView* residual = nullptr) {
    refused("conv3d", [&](Backend& to) { to.conv3d(a, b, nullptr, p, residual, c); });
  };
  conv(f32({4, 4, 2}), w, out);
  conv(turned({3, 4, 4, 2}), w, out);
  conv(x, bf16({5, 2, 3, 3, 3}), out);
  conv(x, f32({5, 3, 3, 3, 3}), out);
  conv(x, f32({0, 2, 3, 3, 3}), f32({1, 2, 2, 0}));
  conv(x, w, f32({1, 4, 4, 5}));
  conv(x, w, f32({1, 2, 2, 6}));
  conv(x, w, f32({2, 2, 2, 5}));
  conv(x, w, out, {.stride_t = 0});
  conv(x, w, out, {.stride_h = 0});
  conv(x, w, out, {.stride_w = 0});
  // Into what would fit, as above.
  conv(x, w, f32({1, 1, 2, 5}), {.pad_top = -1});
  conv(x, w, f32({1, 1, 2, 5}), {.pad_bottom = -1});
  conv(x, w, f32({1, 2, 1, 5}), {.pad_left = -1});
  conv(x, w, f32({1, 2, 1, 5}), {.pad_right = -1});
  const TensorView other = f32({1, 2, 2, 4}), rounded = bf16({1, 2, 2, 5});
  conv(x, w, out, {}, &other);
  conv(x, w, out, {}, &rounded);
}

TEST_P(CheckContract, BlockMeanAndNearestCentroids) {
  const std::vector<int32_t> heads{0}, two{0, 1}, beyond{2};
  const BlockLayout layout = BlockLayout::uniform(40, 16);
  const auto mean = [&](TensorView x, std::span<const int32_t> ids, const BlockLayout& l,
                        TensorView out) {
    refused("block_mean", [&](Backend& b) { b.block_mean(x, ids, l, out); });
  };
  mean(f32({40, 8}), heads, layout, f32({1, 3, 8}));
  mean(f32({2, 41, 8}), heads, layout, f32({1, 3, 8}));
  mean(f32({2, 40, 8}), beyond, layout, f32({1, 3, 8}));
  mean(f32({2, 40, 8}), heads, layout, f32({1, 2, 8}));
  mean(f32({2, 40, 8}), heads, layout, f32({2, 3, 8}));
  mean(f32({2, 40, 8}), heads, layout, bf16({1, 3, 8}));
  mean(f32({2, 40, 8}), two, BlockLayout::explicit_offsets(40, 1, {0, 9, 40}), f32({2, 2, 8}));
  const auto nearest = [&](TensorView x, TensorView centroids, TensorView labels) {
    refused("nearest_centroids",
            [&](Backend& b) { b.nearest_centroids(x, heads, centroids, labels); });
  };
  const TensorView labels = of(DType::i32, {1, 40});
  nearest(f32({2, 40, 8}), bf16({1, 5, 8}), labels);
  nearest(f32({2, 40, 8}), f32({1, 5, 9}), labels);
  nearest(f32({2, 40, 8}), f32({1, 0, 8}), labels);
  nearest(f32({2, 40, 0}), f32({1, 5, 0}), labels);
  nearest(f32({2, 40, 8}), f32({1, 5, 8}), f32({1, 40}));
  nearest(turned({2, 40, 8}), f32({1, 5, 8}), labels);
}

TEST_P(CheckContract, ScoresOfPairs) {
  const std::vector<int32_t> heads{0, 1}, beyond{-1, 0};
  const BlockLayout good = BlockLayout::uniform(40, 16), odd = BlockLayout::uniform(40, 12);
  const BlockLayout cut = BlockLayout::explicit_offsets(40, 2, {0, 9, 9, 40, 0, 1, 2, 40});
  const TensorView x = f32({2, 40, 8}), out = f32({2, 3, 3});
  const auto both = [&](TensorView q, TensorView k, std::span<const int32_t> ids, TensorView to) {
    refused("antidiagonal_scores",
            [&](Backend& b) { b.antidiagonal_scores(q, k, ids, good, good, 0.1f, 8, false, to); });
    refused("block_mass",
            [&](Backend& b) { b.block_mass(q, k, values_.data(), ids, good, good, 0.1f, to); });
  };
  both(x, bf16({2, 40, 8}), heads, out);
  both(x, f32({2, 40, 9}), heads, out);
  both(f32({2, 40, 0}), f32({2, 40, 0}), heads, out);
  both(x, f32({2, 41, 8}), heads, out);
  both(x, f32({1, 40, 8}), heads, out);
  both(x, turned({2, 40, 8}), heads, out);
  both(x, x, beyond, out);
  both(x, x, heads, f32({2, 3, 4}));
  both(x, x, heads, bf16({2, 3, 3}));
  const auto scores = [&](const BlockLayout& q, const BlockLayout& k, int32_t stride,
                          TensorView to) {
    refused("antidiagonal_scores",
            [&](Backend& b) { b.antidiagonal_scores(x, x, heads, q, k, 0.1f, stride, false, to); });
  };
  scores(good, good, 0, out);
  scores(odd, good, 8, f32({2, 4, 3}));
  scores(good, odd, 8, f32({2, 3, 4}));
  scores(cut, good, 8, out);
  refused("block_mass",
          [&](Backend& b) { b.block_mass(x, x, nullptr, heads, good, good, 0.1f, out); });
}

TEST_P(CheckContract, TopPAndTopK) {
  BlockMask mask(1, 2, 70);
  const auto both = [&](TensorView scores, std::vector<float> p, std::vector<int32_t> k) {
    refused("select_top_p", [&](Backend& b) { b.select_top_p(scores, p, mask); });
    refused("select_top_k", [&](Backend& b) { b.select_top_k(scores, k, mask); });
  };
  both(f32({1, 2, 71}), {0.5f}, {3});
  both(f32({2, 70}), {0.5f}, {3});
  both(bf16({1, 2, 70}), {0.5f}, {3});
  both(f32({1, 2, 70}), {0.5f, 0.5f}, {3, 3});
  const Tensor scores = Tensor::zeros(DType::f32, {1, 2, 70});
  scores.as<float>()[81] = std::numeric_limits<float>::quiet_NaN();
  both(scores, {0.5f}, {3});
  const auto top_p = [&](const TensorView& x, const std::vector<float>& p) {
    refused("select_top_p", [&](Backend& b) { b.select_top_p(x, p, mask); });
  };
  scores.as<float>()[81] = -1.0f;
  top_p(scores, {0.5f});
  scores.as<float>()[81] = std::numeric_limits<float>::infinity();
  top_p(scores, {0.5f});
  top_p(f32({1, 2, 70}), {1.5f});
}

TEST_P(CheckContract, MovesAndMerges) {
  const std::vector<int32_t> order{0, 2, 1}, beyond{0, 3, 1}, negative{0, -1, 1};
  const auto both = [&](TensorView x, const int32_t* tokens, TensorView out) {
    refused("gather_tokens", [&](Backend& b) { b.gather_tokens(x, tokens, 0, out); });
    refused("scatter_tokens", [&](Backend& b) { b.scatter_tokens(x, tokens, 0, out); });
  };
  const TensorView x = f32({2, 3, 8});
  both(x, order.data(), bf16({2, 3, 8}));
  both(x, order.data(), f32({1, 3, 8}));
  both(x, order.data(), turned({2, 3, 8}));
  both(x, order.data(), f32({3, 8}));
  both(x, nullptr, f32({2, 3, 8}));
  both(x, order.data(), f32({2, 3, 7}));
  const Tensor out(DType::f32, {1, 3, 8});
  both(f32({1, 3, 8}), beyond.data(), out);
  both(f32({1, 3, 8}), negative.data(), out);
  refused("scatter_tokens", [&](Backend& b) {
    b.scatter_tokens(x, order.data(), 0, f32({2, 4, 8}));
  });
  std::vector<float> lse(6);
  const auto merge = [&](TensorView a, float* lse_a, TensorView b, const float* lse_b) {
    refused("merge_lse", [&](Backend& to) { to.merge_lse(a, lse_a, b, lse_b); });
  };
  merge(x, lse.data(), bf16({2, 3, 8}), lse.data());
  merge(x, lse.data(), f32({2, 3, 7}), lse.data());
  merge(x, lse.data(), turned({2, 3, 8}), lse.data());
  merge(x, nullptr, x, lse.data());
  merge(x, lse.data(), x, nullptr);
}

// Where ops work on host memory only.
TEST_P(CheckContract, MemoryThatIsOutOfReach) {
  if (backend_->device() != Device::cpu) GTEST_SKIP() << GetParam().name << " has device memory";
  TensorView x = f32({2, 3, 8});
  x.device = Device::cuda;
  const std::vector<int32_t> head{0};
  refused("block_mean", [&](Backend& b) {
    b.block_mean(x, head, BlockLayout::uniform(3, 2), f32({1, 2, 8}));
  });
  refused("gated_product", [&](Backend& b) {
    b.gated_product(Epilogue::gelu_tanh, f32({2, 3, 8}), x, f32({2, 3, 8}));
  });
}

INSTANTIATE_TEST_SUITE_P(Backends, CheckContract, testing::ValuesIn(backends_under_test()),
                         choice_name);

}  // namespace
}  // namespace lacuna::test
