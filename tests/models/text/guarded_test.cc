// SPDX-License-Identifier: Apache-2.0
// The text encoders with their activations in memory that the host cannot touch.
#include <gtest/gtest.h>

#include "lacuna/models/text/clip_text.h"
#include "lacuna/models/text/llama_text.h"
#include "lacuna/models/text/umt5.h"
#include "tests/support/guarded_backend.h"

namespace lacuna::test {
namespace {

// An encoder with memory of its own gives the bytes of host memory.
template <typename Encoder>
void expect_same_bytes(const char* name, const Encoder& encoder, DType compute,
                       std::span<const int32_t> ids) {
  const auto encode = [&](Backend& backend) {
    const ConstantWeights constant(backend, encoder.weights());
    Context ctx{backend, compute};
    return encoder.encode(ctx, ids);
  };
  GuardedBackend guarded(make_backend(name));
  const Tensor out = encode(guarded);
  EXPECT_TRUE(same_bytes(out, encode(*make_backend(name))));
  EXPECT_EQ(guarded.allocations(), 0u);
  EXPECT_FALSE(guarded.broken_promise);
}

const std::vector<int32_t> kIds{5, 90, 17, 3, 61, 1};

class GuardedEncoder : public ::testing::TestWithParam<const char*> {};

TEST_P(GuardedEncoder, Umt5AndT5GiveTheSameBytes) {
  Umt5Config config = umt5_preset("tiny");
  for (const DType storage : {DType::f32, DType::bf16})
    for (const DType compute : {DType::f32, DType::bf16}) {
      const auto source = hash_weights("w:", storage);
      config.shared_bias = storage == compute;  // T5
      const Umt5Encoder encoder(config, *source, detect_umt5_names(*source));
      expect_same_bytes(GetParam(), encoder, compute, kIds);
    }
}

TEST_P(GuardedEncoder, ClipGivesTheSameBytes) {
  const ClipTextConfig config{
      .vocab_size = 100, .dim = 64, .num_heads = 4, .ffn_dim = 96, .num_layers = 2};
  for (const DType storage : {DType::f32, DType::bf16})
    for (const DType compute : {DType::f32, DType::bf16}) {
      const auto source = hash_weights("w:", storage);
      const ClipTextEncoder encoder(config, *source, detect_clip_text_prefix(*source));
      expect_same_bytes(GetParam(), encoder, compute, kIds);
    }
}

TEST_P(GuardedEncoder, LlamaGivesTheSameBytes) {
  const LlamaConfig config{.vocab_size = 100,
                           .dim = 64,
                           .num_heads = 4,
                           .num_kv_heads = 2,
                           .head_dim = 16,
                           .ffn_dim = 96,
                           .num_layers = 3};
  for (const DType storage : {DType::f32, DType::bf16})
    for (const DType compute : {DType::f32, DType::bf16}) {
      const auto source = hash_weights("w:", storage);
      const LlamaTextEncoder encoder(config, *source, detect_llama_names(*source), 1);
      expect_same_bytes(GetParam(), encoder, compute, kIds);
    }
}

INSTANTIATE_TEST_SUITE_P(On, GuardedEncoder, ::testing::Values("ref", "cpu"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace lacuna::test
