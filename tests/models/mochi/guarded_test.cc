// SPDX-License-Identifier: Apache-2.0
// The transformer with its activations in memory that the host cannot touch.
#include <gtest/gtest.h>

#include "lacuna/core/threads.h"
#include "tests/models/mochi/support.h"
#include "tests/support/guarded_backend.h"

namespace lacuna::test {
namespace {

using testing::Fixture;

struct Case {
  const char* backend;
  DType storage, compute;
};

// Hundreds of tiny operations: one thread is faster than waking two.
class GuardedMochi : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override { set_num_threads(1); }
  void TearDown() override { set_num_threads(threads_); }

 private:
  int threads_ = num_threads();
};

Tensor forward(Backend& backend, const Case& c, const char* attention, int64_t text_tokens) {
  Policy policy;
  policy.add({{}, parse_plan(attention), {}});
  Fixture model(backend, std::move(policy), c.compute, c.storage);
  const ConstantWeights constant(backend, model.dit.weights());
  model.prompt = model.prepare(text_tokens);
  return model.run();
}

TEST_P(GuardedMochi, ForwardGivesTheSameBytes) {
  const auto plain = make_backend(GetParam().backend);
  GuardedBackend guarded(make_backend(GetParam().backend));
  for (const char* attention : {"dense", "svg2:q_clusters=6,k_clusters=9"}) {
    for (const int64_t text_tokens : {0, 5}) {
      EXPECT_TRUE(same_bytes(forward(guarded, GetParam(), attention, text_tokens),
                             forward(*plain, GetParam(), attention, text_tokens)))
          << attention << ", " << text_tokens << " text tokens";
    }
  }
  EXPECT_EQ(guarded.allocations(), 0u);
  EXPECT_EQ(guarded.promises(), 0u);
  EXPECT_FALSE(guarded.broken_promise);
}

// Layer by layer, with the stream between them in backend memory.
TEST_P(GuardedMochi, PartsOfAForwardMeetInBackendMemory) {
  const auto run = [&](Backend& backend) {
    Fixture model(backend, {}, GetParam().compute, GetParam().storage);
    const Tensor stream(DType::f32, {72 + 16, 32}, backend);
    Tensor velocity;
    for (int64_t layer = 0; layer < 3; ++layer) {
      const LayerPart part{layer, layer + 1, stream};
      velocity = model.run(&part);
    }
    return velocity;
  };
  GuardedBackend guarded(make_backend(GetParam().backend));
  EXPECT_TRUE(same_bytes(run(guarded), run(*make_backend(GetParam().backend))));
}

INSTANTIATE_TEST_SUITE_P(
    On, GuardedMochi,
    ::testing::Values(Case{"ref", DType::f32, DType::f32}, Case{"cpu", DType::f32, DType::f32},
                      Case{"cpu", DType::bf16, DType::f32}, Case{"cpu", DType::f32, DType::bf16},
                      Case{"cpu", DType::bf16, DType::bf16}),
    [](const auto& info) {
      return fmt::format("{}_{}_{}", info.param.backend, dtype_name(info.param.storage),
                         dtype_name(info.param.compute));
    });

}  // namespace
}  // namespace lacuna::test
