// SPDX-License-Identifier: Apache-2.0
// The transformer with its activations in memory that the host cannot touch.
#include <gtest/gtest.h>

#include "lacuna/core/threads.h"
#include "lacuna/models/wan/hash_case.h"
#include "tests/models/wan/support.h"
#include "tests/support/guarded_backend.h"

namespace lacuna::test {
namespace {

struct Case {
  const char* backend;
  DType storage, compute;
};

struct Seen {
  std::map<std::string, Tensor, std::less<>> taps;
  WanTap tap = [this](std::string_view name, const TensorView& value) {
    taps.emplace(name, on_host(host_memory_backend(), value));
  };
  static Backend& host_memory_backend() {
    static const std::unique_ptr<Backend> backend = make_backend("ref");
    return *backend;
  }
};

// Hundreds of tiny operations: one thread is faster than waking two.
class GuardedDit : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override { set_num_threads(1); }
  void TearDown() override { set_num_threads(threads_); }

 private:
  int threads_ = num_threads();
};

Tensor forward(Backend& backend, const Case& c, std::string_view attention, Seen* seen) {
  const WanConfig config = golden_wan_config();
  const auto source = hash_weights("w:", c.storage);
  WeightReader reader(*source);
  const WanDit dit(config, reader);
  const ConstantWeights constant(backend, dit.weights());
  Context ctx{backend, c.compute};
  Policy policy;
  policy.add({{}, parse_plan(attention), {}});
  Engine engine(backend, std::move(policy));
  const WanTap* tap = seen == nullptr ? nullptr : &seen->tap;
  const double t[] = {700.0, 100.0};
  const std::vector<TimeEmbedding> times = dit.embed_times(ctx, t, tap);
  Tensor context(DType::f32, {20, config.text_dim}), x(DType::f32, {config.in_channels, 3, 8, 12});
  fill_hash("context", 0.0, 0.3, {context.as<float>(), static_cast<size_t>(context.numel())});
  fill_hash("x", 0.0, 1.7, {x.as<float>(), static_cast<size_t>(x.numel())});
  const PreparedText text = dit.prepare_text(ctx, context, 64, tap);
  Tensor out(DType::f32, {config.out_channels, 3, 8, 12});
  const TokenTime ranges[] = {{0, 24, &times[1]}, {24, 72, &times[0]}};
  dit.forward(ctx, engine, Site{.num_steps = 1}, x, ranges, text, out, tap);
  return out;
}

TEST_P(GuardedDit, ForwardGivesTheSameBytes) {
  const Case& c = GetParam();
  const auto plain = make_backend(c.backend);
  GuardedBackend guarded(make_backend(c.backend));
  for (const char* attention : {"dense", "svg2:q_clusters=6,k_clusters=9"}) {
    const Tensor out = forward(guarded, c, attention, nullptr);
    EXPECT_TRUE(same_bytes(out, forward(*plain, c, attention, nullptr))) << attention;
  }
  EXPECT_EQ(guarded.allocations(), 0u);
  EXPECT_EQ(guarded.promises(), 0u);
  EXPECT_FALSE(guarded.broken_promise);
}

TEST_P(GuardedDit, TapsSeeTheSameBytesOnTheHost) {
  const auto plain = make_backend(GetParam().backend);
  GuardedBackend guarded(make_backend(GetParam().backend));
  Seen a, b;
  forward(guarded, GetParam(), "dense", &a);
  forward(*plain, GetParam(), "dense", &b);
  ASSERT_EQ(a.taps.size(), b.taps.size());
  for (const auto& [name, value] : b.taps) EXPECT_TRUE(same_bytes(a.taps.at(name), value)) << name;
}

// Layer by layer, with the stream between them in backend memory.
TEST_P(GuardedDit, PartsOfAForwardMeetInBackendMemory) {
  const WanConfig config = golden_wan_config();
  const auto source = hash_weights("w:", GetParam().storage);
  const auto run = [&](Backend& backend) {
    WeightReader reader(*source);
    const WanDit dit(config, reader);
    Context ctx{backend, GetParam().compute};
    Engine engine(backend, Policy());
    const double t = 300.0;
    const std::vector<TimeEmbedding> times = dit.embed_times(ctx, {&t, 1});
    Tensor x = Tensor::zeros(DType::f32, {config.in_channels, 2, 4, 4}),
           context = Tensor::zeros(DType::f32, {3, config.text_dim});
    x.as<float>()[7] = 1.0f;
    const PreparedText text = dit.prepare_text(ctx, context, 3);
    Tensor out(DType::f32, {config.out_channels, 2, 4, 4});
    const Tensor stream(DType::f32, {8, config.dim()}, backend);
    for (int64_t layer = 0; layer < config.num_layers; ++layer)
      dit.forward_part(ctx, engine, Site{.num_steps = 1}, x, times[0], text,
                       {layer, layer + 1, stream}, out);
    return out;
  };
  GuardedBackend guarded(make_backend(GetParam().backend));
  EXPECT_TRUE(same_bytes(run(guarded), run(*make_backend(GetParam().backend))));
}

INSTANTIATE_TEST_SUITE_P(
    On, GuardedDit,
    ::testing::Values(Case{"ref", DType::f32, DType::f32}, Case{"cpu", DType::f32, DType::f32},
                      Case{"cpu", DType::bf16, DType::f32}, Case{"cpu", DType::f32, DType::bf16},
                      Case{"cpu", DType::bf16, DType::bf16}),
    [](const auto& info) {
      return fmt::format("{}_{}_{}", info.param.backend, dtype_name(info.param.storage),
                         dtype_name(info.param.compute));
    });

}  // namespace
}  // namespace lacuna::test
