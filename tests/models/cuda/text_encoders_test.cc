// SPDX-License-Identifier: Apache-2.0
// The text encoders on the CUDA backend, their activations in device memory, against the reference,
// which gives upstream's numbers (tests/models/text).
#include <gtest/gtest.h>

#include <vector>

#include "lacuna/backend/cuda/cuda_backend.h"
#include "lacuna/backend/cuda/emulator/emulated_device.h"
#include "lacuna/backend/ref/ref_backend.h"
#include "lacuna/core/metrics.h"
#include "lacuna/models/text/clip_text.h"
#include "lacuna/models/text/llama_text.h"
#include "lacuna/models/text/umt5.h"

namespace lacuna {
namespace {

// The limits are those that the CPU backend keeps.
template <typename Encoder>
void expect_as_ref(const Encoder& encoder, double bf16_limit) {
  const std::vector<int32_t> ids{5, 90, 17, 3, 61, 8, 44, 45, 12, 70, 71, 2, 33, 52, 6, 99};
  const auto ref = make_ref_backend();
  Context exact{*ref};
  const Tensor expected = encoder.encode(exact, ids);
  for (const DType compute : {DType::f32, DType::bf16}) {
    const auto cuda =
        make_cuda_backend(cuda::emulator::make_emulated_device(cuda::Family::sm90, 1));
    const ConstantWeights constant(*cuda, encoder.weights());
    Context ctx{*cuda, compute};
    EXPECT_LT(compare(encoder.encode(ctx, ids), expected).rel_l2,
              compute == DType::f32 ? 2e-6 : bf16_limit);
  }
}

TEST(CudaTextEncoders, Umt5AndT5) {
  const auto source = hash_weights("w:", DType::bf16);
  Umt5Config config = umt5_preset("tiny");
  for (const bool shared_bias : {false, true}) {
    config.shared_bias = shared_bias;
    expect_as_ref(Umt5Encoder(config, *source, detect_umt5_names(*source)), 2.6e-2);
  }
}

TEST(CudaTextEncoders, Clip) {
  const auto source = hash_weights("w:", DType::bf16);
  expect_as_ref(ClipTextEncoder(
                    {.vocab_size = 100, .dim = 64, .num_heads = 4, .ffn_dim = 96, .num_layers = 2},
                    *source, detect_clip_text_prefix(*source)),
                1e-2);
}

// Heads of 64, which tensor cores take: every second query head at a time, under a bias.
TEST(CudaTextEncoders, Llama) {
  const auto source = hash_weights("w:", DType::bf16);
  expect_as_ref(LlamaTextEncoder({.vocab_size = 100,
                                  .dim = 64,
                                  .num_heads = 4,
                                  .num_kv_heads = 2,
                                  .head_dim = 64,
                                  .ffn_dim = 96,
                                  .num_layers = 3},
                                 *source, detect_llama_names(*source), 1),
                1.2e-2);
}

}  // namespace
}  // namespace lacuna
